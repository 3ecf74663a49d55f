"""What users and wrappers do to an optimizer beside stepping it."""

import pytest
import torch
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
