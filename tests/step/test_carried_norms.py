"""Norms carried from step to step: whoever else writes a weight, the next step knows."""

import warnings

import pytest
import torch
from cases import use
from torch import nn

import lhkernels as lh

OPTIONS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def clamp(p):
    with torch.no_grad():
        p.clamp_(-0.1, 0.1)


def multiply(p):
    with torch.no_grad():
        p.mul_(3)


def assign(p):
    p.data = p.data * 3


def assign_twice(p):  # the allocator gives the second the first's address
    p.data = p.data * 3
    p.data = p.data * 3


def load(p):
    layer = nn.Linear(p.shape[1], p.shape[0], bias=False)
    layer.weight = p
    layer.load_state_dict({"weight": torch.full_like(p, 0.3)})


def under_inference_mode(p):
    with torch.inference_mode():
        p.mul_(2)


WRITES = [clamp, multiply, assign, assign_twice, load, under_inference_mode]


def steps(p, flags, write, invalidate=False):
    opt = lh.ScaleAmendedSGD([p], **OPTIONS, **flags)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        p.grad = torch.randn(p.shape, generator=generator)
        opt.step()
        write(p)
        if invalidate:
            opt.invalidate_norms()
    p.grad = torch.randn(p.shape, generator=generator)
    opt.step()
    return p.detach()


@pytest.mark.parametrize("backend", ["foreach", "cpp", "triton"])
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_writes_are_noticed(backend, write, monkeypatch):
    start = 0.02 * torch.randn(64, 64)
    expected = steps(nn.Parameter(start.clone()), {"foreach": False}, write)
    found = steps(nn.Parameter(start.clone()), use(backend, monkeypatch), write)
    assert (found - expected).norm() < 1e-4 * expected.norm()  # a stale factor is off by 9


def vector_to_parameters(p):
    """Again and again from one vector, of which the parameter is a view from the first time on."""
    if not hasattr(p, "vector"):
        p.vector = nn.utils.parameters_to_vector([p]).detach().clone()
        nn.utils.vector_to_parameters(p.vector, [p])
    p.vector.mul_(3)
    nn.utils.vector_to_parameters(p.vector, [p])


UNSEEN = {
    "data.mul_": lambda p: p.data.mul_(2),
    "data.clamp_": lambda p: p.data.clamp_(-0.005, 0.005),
    "data.copy_": lambda p: p.data.copy_(p.data.flip(0) * 3),
    "vector_to_parameters": vector_to_parameters,
    "numpy": lambda p: p.detach().numpy().__imul__(3),
    "constant": lambda p: p.data.fill_(0.25),
}


FOUND = r"parameter 0 has been written .*invalidate_norms"


@pytest.mark.parametrize("shape", [(3, 5), (64, 64), (300, 257)], ids=str)
@pytest.mark.parametrize("write", UNSEEN)
def test_the_cpp_step_finds_writes_that_bump_no_version(write, shape, monkeypatch):
    """Before it uses the norm: the numbers are those of the reference."""
    start = 0.02 * torch.randn(shape)
    expected = steps(nn.Parameter(start.clone()), {"foreach": False}, UNSEEN[write])
    with pytest.warns(UserWarning, match=FOUND) as caught:
        found = steps(nn.Parameter(start.clone()), use("cpp", monkeypatch), UNSEEN[write])
    assert len(caught) == 1
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("shape", [(3, 5), (64, 64)], ids=str)
@pytest.mark.parametrize("write", UNSEEN)
def test_the_triton_step_finds_writes_that_bump_no_version(write, shape, monkeypatch):
    """When it has read the weight, which is once too late; then no step uses a carried norm."""
    flags = use("triton", monkeypatch)
    p = nn.Parameter(0.2 * torch.randn(shape))
    opt = lh.ScaleAmendedSGD([p], **OPTIONS, **flags)
    p.grad = torch.randn(shape)
    UNSEEN[write](p)
    opt.step()
    UNSEEN[write](p)
    with pytest.warns(UserWarning, match=FOUND):
        opt.step()
    for _ in range(2):
        UNSEEN[write](p)
        twin = nn.Parameter(p.detach().clone())
        twin.grad = p.grad
        buffer = opt.state[p]["momentum_buffer"].clone()
        reference = lh.ScaleAmendedSGD([twin], **OPTIONS, foreach=False)
        reference.state[twin]["momentum_buffer"] = buffer
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            opt.step()
        reference.step()
        assert (p - twin).norm() < 1e-5 * twin.norm()


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_norms_are_carried_again_after_invalidate_norms(backend, monkeypatch):
    p = nn.Parameter(0.2 * torch.randn(20, 30))
    p.grad = torch.ones_like(p)
    opt = lh.ScaleAmendedSGD([p], **OPTIONS, **use(backend, monkeypatch))
    opt.step()
    (kept_set,) = (kept.set for kept in opt._sets._sets.values())
    p.data.mul_(3)
    with pytest.warns(UserWarning, match="has been written"):
        opt.step()
    assert not opt._sets.carries
    p.data.mul_(3)
    opt.invalidate_norms()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        opt.step()
        opt.step()
    with kept_set.norms.renewed() as stale:
        assert stale == []


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_who_writes_openly_is_not_warned(backend, monkeypatch):
    """Nor who writes what has no norm, nor who has NaNs."""
    flags = use(backend, monkeypatch)
    p, bias = nn.Parameter(0.2 * torch.randn(20, 30)), nn.Parameter(torch.randn(20))
    opt = lh.ScaleAmendedSGD([p, bias], **OPTIONS, **flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for write in [*WRITES, lambda p: p.grad.fill_(float("nan")), lambda p: None]:
            p.grad, bias.grad = torch.randn(20, 30), torch.ones(20)
            opt.step()
            write(p)
            bias.data.mul_(2)
            opt.step()


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_carried_norms_have_the_bits_of_recomputed_ones(backend, monkeypatch):
    start = 0.2 * torch.randn(130, 70)
    flags = use(backend, monkeypatch)
    carried = steps(nn.Parameter(start.clone()), flags, lambda p: None)
    recomputed = steps(nn.Parameter(start.clone()), flags, lambda p: None, invalidate=True)
    assert torch.equal(carried, recomputed)


@pytest.mark.parametrize("backend", ["reference", "foreach", "cpp", "triton"])
def test_steps_bump_versions(backend, monkeypatch):
    p = nn.Parameter(torch.randn(3, 4))
    p.grad = torch.ones(3, 4)
    opt = lh.ScaleAmendedSGD([p], **OPTIONS, **use(backend, monkeypatch))
    opt.step()
    before = p._version, opt.state[p]["momentum_buffer"]._version
    opt.step()
    assert p._version > before[0]
    assert opt.state[p]["momentum_buffer"]._version > before[1]


KERNELS = {"cpp": "lhkernels.step.cpp.sgd_step_", "triton": "lhkernels.step.triton_kernel.step"}


@pytest.mark.parametrize("backend", KERNELS)
def test_a_step_that_fails_makes_no_norm_valid(backend, monkeypatch):
    start = 0.2 * torch.randn(20, 30)
    flags = use(backend, monkeypatch)
    found = []
    for fails in (False, True):
        p = nn.Parameter(start.clone())
        p.grad = torch.ones_like(p)
        opt = lh.ScaleAmendedSGD([p], **OPTIONS, **flags)
        opt.step()
        multiply(p)
        if fails:
            with monkeypatch.context() as patch:
                patch.setattr(KERNELS[backend], lambda *_, **__: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    opt.step()
        opt.step()
        found.append(p.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_there_is_one_warning_and_an_error_made_of_it_undoes_nothing(backend, monkeypatch):
    """One for all groups, sets and loaded checkpoints; where it is an error, all have moved."""
    params = [nn.Parameter(0.2 * torch.randn(5, 7)) for _ in range(3)]
    groups = [{"params": [p]} for p in params]
    opt = lh.ScaleAmendedSGD(groups, **OPTIONS, **use(backend, monkeypatch))
    for p in params:
        p.grad = torch.ones(5, 7)
    opt.step()
    for p in params:
        p.data.mul_(2)
    before = [p.detach().clone() for p in params]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match=FOUND):
            opt.step()
        for p, old in zip(params, before):
            assert not torch.equal(p, old)
            assert "momentum_buffer" in opt.state[p]
            p.data.mul_(2)
        opt.step()
        opt.load_state_dict(opt.state_dict())
        params[0].grad = None
        params[1].data.mul_(2)
        opt.step()


def test_another_optimizers_fused_step_is_found(monkeypatch):
    """torch's fused optimizers bump no version."""
    start = 0.2 * torch.randn(40, 30)
    found = []
    for flags in ({"foreach": False}, use("cpp", monkeypatch)):
        p = nn.Parameter(start.clone())
        p.grad = torch.ones_like(p)
        ours = lh.ScaleAmendedSGD([p], **OPTIONS, **flags)
        theirs = torch.optim.SGD([p], lr=0.3, fused=True)
        for step in (ours.step, theirs.step, ours.step):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                step()
        found.append(p.detach())
    torch.testing.assert_close(*found)
