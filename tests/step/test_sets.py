"""Sets: what identifies them, whose memory they may write, and whose random bits they draw."""

import pytest
import torch
from cases import FLAGS, use
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import lhkernels as lh

BACKENDS = list(FLAGS)
OPTIONS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def stepped(opt, p):
    p.grad = torch.full_like(p, 0.5)
    opt.step()


def replace(opt, p, data):
    """As after pruning: other data, without the old gradient and state."""
    p.grad = None
    opt.state.pop(p, None)
    p.data = data


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 2, 7, 40], ids="{} rows".format)
def test_data_of_another_size_is_another_set(backend, size, monkeypatch):
    """Nothing outside the new data is written, all of it moves, and by the factor that it has."""
    flags = use(backend, monkeypatch)
    p, bias = nn.Parameter(0.2 * torch.randn(4, 3)), nn.Parameter(torch.randn(4))
    opt = lh.ScaleAmendedSGD([p, bias], **OPTIONS, **flags)
    bias.grad = torch.ones(4)
    stepped(opt, p)
    base = 0.2 * torch.randn(42, 3)
    replace(opt, p, base[:size])
    replace(opt, bias, torch.ones(size))
    bias.grad = torch.ones(size)
    before = base.clone()
    stepped(opt, p)
    s = before[:size].double().square().sum() / 4  # n_L is the first network's
    expected = before.double()
    expected[:size] -= 0.05 * s * (0.5 + 0.01 * expected[:size])
    torch.testing.assert_close(base.double(), expected, rtol=1e-5, atol=1e-7)
    moved = 1 - 0.05 * (size / 4) * 1.01  # s = n_b / n_L
    torch.testing.assert_close(bias.detach(), torch.full((size,), moved))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["gradient", "momentum buffer"])
def test_what_is_left_of_another_size_is_refused(backend, what, monkeypatch):
    first, p = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(4, 3))
    params = {"params": [first]}, {"params": [p]}
    opt = lh.ScaleAmendedSGD(params, **OPTIONS, **use(backend, monkeypatch))
    first.grad = torch.ones(2, 2)
    stepped(opt, p)
    before = first.detach().clone()
    p.data = torch.ones(6, 3)
    if what == "momentum buffer":
        p.grad = torch.ones(6, 3)
    with pytest.raises(RuntimeError, match=rf"the {what} of parameter 1 is \(4, 3\).*\(6, 3\)"):
        opt.step()
    assert torch.equal(first, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_dtype_and_device_are_part_of_a_set(backend, monkeypatch):
    flags = use(backend, monkeypatch)
    p = nn.Parameter(0.2 * torch.randn(6, 4, 3, 3))
    opt = lh.ScaleAmendedSGD([p], lr=0.05, **flags)
    for data in (
        0.2 * torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last),
        0.2 * torch.randn(6, 8, 3, 3)[:, ::2],
        0.2 * torch.randn(6, 4, 3, 3).bfloat16(),
        0.2 * torch.randn(6, 4, 3, 3),
    ):
        replace(opt, p, data)
        before = data.double()
        stepped(opt, p)
        s = before.square().sum() / 6
        tolerance = {"rtol": 1e-5, "atol": 1e-7} if data.dtype == torch.float32 else {}
        expected = (before - 0.05 * s * 0.5).to(data.dtype)
        torch.testing.assert_close(p.detach(), expected, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_parameters_over_one_memory(backend, groups, monkeypatch):
    """One after the other, as the reference does, and by the norms that they then have."""
    flags = use(backend, monkeypatch)
    found = []
    for options in ({"foreach": False}, flags):
        torch.manual_seed(1)
        memory = 0.2 * torch.randn(30, 20)
        a, b = nn.Parameter(memory), nn.Parameter(memory[:20])
        params = [a, b] if groups == 1 else [{"params": [a]}, {"params": [b]}]
        opt = lh.ScaleAmendedSGD(params, plan=lh.Plan.chain([a, b]), **OPTIONS, **options)
        for _ in range(3):
            a.grad, b.grad = torch.randn(30, 20), torch.randn(20, 20)
            opt.step()
        found.append(memory)
    if backend == "triton" and groups == 2:  # its kernel has read the weight when it finds out
        assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()
    else:
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_that_comes_to_be_shared(backend, monkeypatch):
    """After a step, by parameters of one shape: two threads must not write it at a time."""
    flags = use(backend, monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    found = []
    try:
        for options in ({"foreach": False}, flags):
            torch.manual_seed(1)
            params = [nn.Parameter(0.2 * torch.randn(64, 600)) for _ in range(3)]
            opt = lh.ScaleAmendedSGD(params, lr=0.05, momentum=0.9, amend=False, **options)
            for step in range(10):
                for p in params:
                    p.grad = torch.randn(64, 600)
                opt.step()
                if step == 0:
                    for p in params[1:]:
                        p.data = params[0].data
            found.append(params[0].detach())
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_are_negated_when_read(backend, monkeypatch):
    """Autograd makes such for imaginary parts: their memory has the other sign."""
    flags = use(backend, monkeypatch)
    grad = torch._neg_view(torch.randn(4, 3))
    assert grad.is_neg()
    found = []
    for g in (grad, grad.resolve_neg()):
        torch.manual_seed(1)
        p = nn.Parameter(torch.randn(4, 3))
        opt = lh.ScaleAmendedSGD([p], **OPTIONS, **flags)
        p.grad = g
        opt.step()
        found.append(p.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", [False, True], ids=["positions", "names"])
def test_every_parameter_has_rounding_of_its_own(backend, names, monkeypatch):
    """In one set, in others of one optimizer, and with names in other optimizers too."""
    flags = use(backend, monkeypatch, torch.bfloat16)
    params = [nn.Parameter(torch.ones(40, 50).bfloat16()) for _ in range(4)]
    for p in params:
        p.grad = torch.full_like(p, 1e-3)
    options = {"lr": 1.0, "amend": False, "stochastic_rounding": True, **flags}
    named = [(f"p{i}", p) if names else p for i, p in enumerate(params)]
    groups = [{"params": named[:2]}, {"params": named[2:3], "momentum": 0.5}]
    optimizers = [lh.ScaleAmendedSGD(groups, **options)]
    if names:
        optimizers.append(lh.ScaleAmendedSGD(named[3:], **options))
    else:
        optimizers[0].add_param_group({"params": named[3:], "weight_decay": 1e-6})
    for opt in optimizers:
        opt.step()
    rounded = torch.stack([(p.detach() != 1).flatten().double() for p in params])
    assert (rounded.mean(1) - 0.256).abs().max() < 0.05  # 1e-3 is 0.256 of the distance below 1
    correlation = torch.corrcoef(rounded).fill_diagonal_(0).abs().max()
    assert correlation < 0.1  # 2000 draws: four standard deviations


@pytest.mark.parametrize("flags", [{}, *FLAGS.values()], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fake_tensors_step(flags, momentum):
    with FakeTensorMode():
        p = nn.Parameter(torch.randn(4, 3))
        opt = lh.ScaleAmendedSGD([p], lr=0.1, momentum=momentum, scale_reference="initial", **flags)
        for _ in range(2):
            stepped(opt, p)
        assert ("momentum_buffer" in opt.state.get(p, {})) == (momentum != 0)


@pytest.mark.parametrize("flags", [{}, *FLAGS.values()], ids=str)
def test_subclasses_with_operations_of_their_own_are_the_references(flags):
    a, b = 0.2 * torch.randn(4, 3), 0.3 * torch.randn(4, 3)
    p = nn.Parameter(TwoTensor(a.clone(), b.clone()))
    opt = lh.ScaleAmendedSGD([p], **OPTIONS, **flags)
    for _ in range(2):
        p.grad = TwoTensor(torch.ones(4, 3), torch.ones(4, 3))
        opt.step()
    for data, inner in ((a, p.a), (b, p.b)):
        twin = nn.Parameter(data)
        reference = lh.ScaleAmendedSGD([twin], foreach=False, **OPTIONS)
        for _ in range(2):
            twin.grad = torch.ones(4, 3)
            reference.step()
        torch.testing.assert_close(inner, twin.detach())
