"""What users and wrappers do to an optimizer beside stepping it."""

import gc
import weakref

import pytest
import torch
from cases import FLAGS, use
from torch import nn

import lhkernels as lh


def weight(*shape):
    p = nn.Parameter(torch.randn(shape))
    p.grad = torch.randn(shape)
    return p


def test_parameters_swapped_and_appended_in_a_group():
    """As wrappers with float32 master weights do."""
    a, b, c = weight(4, 3), weight(4, 3), weight(4, 3)
    opt = lh.ScaleAmendedSGD([a], lr=0.1)
    opt.step()
    opt.param_groups[0]["params"][0] = b
    opt.param_groups[0]["params"].append(c)
    expected = [p.detach() - 0.1 * p.detach().square().sum() / 4 * p.grad for p in (b, c)]
    opt.step()
    torch.testing.assert_close([b.detach(), c.detach()], expected)


def test_stochastic_rounding_switched_on_later():
    p = nn.Parameter(torch.ones(400, dtype=torch.bfloat16))
    opt = lh.ScaleAmendedSGD([{"params": []}, {"params": [p]}], lr=1.0, amend=False)
    opt.param_groups[1]["stochastic_rounding"] = True
    p.grad = torch.full_like(p, -0.5 * torch.finfo(torch.bfloat16).eps)
    opt.step()
    assert 100 < (p != 1).sum() < 300
    assert opt.param_groups[1]["rounding_step"] == 1


@pytest.mark.parametrize("flags", [{"foreach": False}, {}])
def test_momentum_dtype_is_for_real_parameters(flags):
    p = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    opt = lh.ScaleAmendedSGD([p], momentum=0.9, momentum_dtype=torch.float32, **flags)
    with pytest.raises(ValueError, match=r"momentum_dtype=torch\.float32 is real"):
        opt.step()
    assert torch.equal(p, torch.ones_like(p))


def test_momentum_dtype_switched_on_later():
    """Old buffers and those of parameters that come later go through one kernel."""
    a, b = (nn.Parameter(torch.randn(4, 3).bfloat16()) for _ in range(2))
    opt = lh.ScaleAmendedSGD([a, b], lr=0.1, momentum=0.9)
    a.grad = torch.randn_like(a)
    opt.step()
    opt.param_groups[0]["momentum_dtype"] = torch.float32
    b.grad = torch.randn_like(b)
    opt.step()
    if lh.step.fused_backend("cpu", torch.bfloat16)[0] is not None:
        assert {opt.state[p]["momentum_buffer"].dtype for p in (a, b)} == {torch.float32}


def test_empty_groups():
    p = weight(3, 2)
    groups = [{"params": []}, {"params": [p]}]
    lh.ScaleAmendedSGD(groups, lr=0.1, stochastic_rounding=True).step()


def test_checkpoints_of_old_torch_versions():
    """Groups without newer options, and state that holds a None."""
    ours, theirs = weight(4, 3), weight(4, 3)
    theirs.data, theirs.grad = ours.detach().clone(), ours.grad.clone()
    old = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.0, "nesterov": False}
    saved = {"state": {0: {"momentum_buffer": None}}, "param_groups": [{**old, "params": [0]}]}
    opt = lh.ScaleAmendedSGD([ours], lr=1.0, amend=False)
    sgd = torch.optim.SGD([theirs], lr=1.0)
    for optimizer in (opt, sgd):
        optimizer.load_state_dict(saved)
        optimizer.step()
        optimizer.step()
    assert torch.equal(ours, theirs)


def test_load_hooks_see_and_change_what_is_loaded():
    p = nn.Parameter(torch.randn(4, 4, dtype=torch.bfloat16))
    p.grad = torch.randn_like(p)
    options = {"lr": 0.1, "momentum": 0.9, "momentum_dtype": torch.float32}
    opt = lh.ScaleAmendedSGD([p], **options)
    opt.step()
    saved, seen = opt.state_dict(), []

    def zero_buffers(_, state_dict):
        state = {k: {"momentum_buffer": torch.zeros(4, 4)} for k in state_dict["state"]}
        return {**state_dict, "state": state}

    opt.register_load_state_dict_pre_hook(zero_buffers)
    opt.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[p]["momentum_buffer"].dtype)
    )
    opt.load_state_dict(saved)
    assert torch.equal(opt.state[p]["momentum_buffer"], torch.zeros(4, 4))
    assert seen == [torch.float32]


def test_a_group_that_is_amended_later_is_checked_then():
    p = nn.Parameter(torch.zeros(3, 2))
    p.grad = torch.zeros(3, 2)
    opt = lh.ScaleAmendedSGD([p], lr=0.1, amend=False)
    opt.step()
    opt.param_groups[0]["amend"] = True
    with pytest.raises(ValueError, match=r"squared norm 0\.0"):
        opt.step()


@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}, {}])
@pytest.mark.parametrize("value", [1e-24, 1e20])
def test_norms_out_of_range_are_refused_by_every_backend(flags, value):
    p = nn.Parameter(torch.full((3, 2), value))
    p.grad = torch.ones(3, 2)
    with pytest.raises(ValueError, match="squared norm"):
        lh.ScaleAmendedSGD([p], lr=0.1, **flags).step()


def test_initial_reference_without_blocks():
    for p in (weight(3), weight()):
        opt = lh.ScaleAmendedSGD([p], lr=0.1, scale_reference="initial")
        assert opt.block_scales()[0] == 1
        expected = p.detach() - 0.1 * p.grad
        opt.step()
        torch.testing.assert_close(p.detach(), expected)


def test_meta_parameters():
    p = nn.Parameter(torch.empty(3, 2, device="meta"))
    p.grad = torch.empty(3, 2, device="meta")
    opt = lh.ScaleAmendedSGD([p], lr=0.1, momentum=0.9, scale_reference="initial")
    opt.step()
    assert opt.state[p]["momentum_buffer"].device.type == "meta"


def stepped(a, b, **options):
    """An optimizer with a group each for two parameters, the first of which has taken a step."""
    options = {"lr": 0.1, "momentum": 0.9, **options}
    opt = lh.ScaleAmendedSGD([{"params": [("a", a)]}, {"params": [("b", b)]}], **options)
    opt.step()
    return opt, a.detach().clone(), opt.state[a]["momentum_buffer"].clone()


def a_gradient_of_another_size(opt, b):
    b.data = torch.ones(7, 2)


def a_gradient_of_integers(opt, b):
    b.grad_dtype = None
    b.grad = torch.ones(4, 2, dtype=torch.int32)


def a_gradient_of_float8(opt, b):
    b.grad_dtype = None
    b.grad = torch.ones(4, 2).to(torch.float8_e4m3fn)


def a_complex_gradient(opt, b):
    b.grad_dtype = None
    b.grad = torch.ones(4, 2, dtype=torch.complex64)


def a_buffer_of_another_size(opt, b):
    opt.state[b]["momentum_buffer"] = torch.zeros(4)


def a_buffer_on_another_device(opt, b):
    opt.state[b]["momentum_buffer"] = torch.zeros(4, 2, device="meta")


@pytest.mark.parametrize("backend", FLAGS)
@pytest.mark.parametrize(
    "spoil",
    [
        a_gradient_of_another_size,
        a_gradient_of_integers,
        a_gradient_of_float8,
        a_complex_gradient,
        a_buffer_of_another_size,
        a_buffer_on_another_device,
    ],
)
def test_what_does_not_fit_is_refused_before_any_group_has_moved(spoil, backend, monkeypatch):
    a, b = weight(3, 2), weight(4, 2)
    opt, before, buffer = stepped(a, b, **use(backend, monkeypatch))
    spoil(opt, b)
    what = "gradient" if "gradient" in spoil.__name__ else "momentum buffer"
    with pytest.raises(RuntimeError, match=f"the {what} of parameter 'b' is .*, but the parameter"):
        opt.step()
    assert torch.equal(a, before)
    assert torch.equal(opt.state[a]["momentum_buffer"], buffer)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"fused": True, "foreach": True}, "exclude each other"),
        ({"fused": True, "differentiable": True}, "no differentiable step"),
        ({"amend": "no"}, "amend='no' is not a bool"),
        ({"nesterov": 1}, "nesterov=1 is not a bool"),
        ({"momentum_dtype": torch.float8_e5m2}, "momentum_dtype=torch.float8_e5m2"),
    ],
)
def test_flags_that_are_set_later_are_checked_before_any_group_has_moved(options, error):
    a, b = weight(3, 2), weight(4, 2)
    opt, before, buffer = stepped(a, b)
    opt.param_groups[1].update(options)
    with pytest.raises((ValueError, RuntimeError), match=error):
        opt.step()
    assert torch.equal(a, before)
    assert torch.equal(opt.state[a]["momentum_buffer"], buffer)


def test_two_parameters_of_one_name():
    a, b = weight(3, 2), weight(4, 2)
    groups = [{"params": [("weight", a)]}, {"params": [("weight", b)]}]
    with pytest.raises(ValueError, match="two parameters are named 'weight'"):
        lh.ScaleAmendedSGD(groups)
    opt = lh.ScaleAmendedSGD([("weight", a)])
    with pytest.raises(ValueError, match=r"prefix=\.\.\."):
        opt.add_param_group({"params": [("weight", b)]})
    assert len(opt.param_groups) == len(opt.block_scales()) == 1


def test_a_new_weight_at_the_address_of_an_old_one_is_checked():
    """The check of the first step must not take it for the one that it has let pass."""
    old, other = weight(3, 2), weight(3, 2)
    opt = lh.ScaleAmendedSGD([old], lr=0.1)
    params = opt.param_groups[0]["params"]
    opt.step()
    params[0] = other
    opt.step()  # now the optimizer has no need of the old one
    address, gone = id(old), weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None
    new = [nn.Parameter(torch.zeros(3, 2)) for _ in range(100)]
    params[0] = next((p for p in new if id(p) == address), new[0])
    params[0].grad = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"squared norm 0\.0"):
        opt.step()


@pytest.mark.parametrize("backend", ["reference", "foreach", "cpp", "triton"])
@pytest.mark.parametrize("weight_decay", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_weight_decay_leaves_infinite_weights_alone(
    backend, weight_decay, momentum, monkeypatch
):
    """Its 0 times infinity is nothing, not NaN."""
    p = nn.Parameter(torch.tensor([float("inf"), 1.0, -float("inf"), 2.0]).repeat(20))
    options = {"lr": 0.5, "momentum": momentum, "weight_decay": weight_decay, "amend": False}
    opt = lh.ScaleAmendedSGD([p], **options, **use(backend, monkeypatch))
    p.grad = torch.ones(80)
    opt.step()
    expected = torch.tensor([float("inf"), 0.5, -float("inf"), 1.5]).repeat(20)
    assert torch.equal(p.detach(), expected)


def test_no_weight_decay_on_a_device_that_the_host_does_not_read():
    """A weight decay that needs a gradient is a tensor to the reference, as on a GPU."""
    weight_decay = torch.tensor(0.0, requires_grad=True)
    for flags in ({"foreach": False}, {"foreach": True}):
        p = nn.Parameter(torch.tensor([float("inf"), 1.0]))
        opt = lh.ScaleAmendedSGD([p], lr=0.5, weight_decay=weight_decay, amend=False, **flags)
        p.grad = torch.ones(2)
        opt.step()
        assert p.tolist() == [float("inf"), 0.5]


@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("default", ["bfloat16", "meta"])
def test_torchs_defaults_for_new_tensors_change_nothing(default, backend, monkeypatch):
    """torch.set_default_dtype and torch.set_default_device, as large models are built under."""
    flags = use(backend, monkeypatch)
    found = []
    for changed in (False, True):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(33, 17)), nn.Parameter(torch.randn(9))]
        for p in params:
            p.grad = torch.randn_like(p)
        if changed and default == "meta":
            torch.set_default_device("meta")
        elif changed:
            torch.set_default_dtype(torch.bfloat16)
        try:
            opt = lh.ScaleAmendedSGD(params, lr=0.01, momentum=0.9, weight_decay=0.1, **flags)
            for _ in range(3):
                opt.step()
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
        found += [[p.detach() for p in params]]
    assert all(map(torch.equal, *found))
