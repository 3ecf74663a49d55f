"""Checkpoints: bit for bit resumption, torch.optim.SGD's format, buffers' dtypes, DCP."""

import io

import pytest
import torch
from cases import FLAGS, make_grads, make_params, run, scale_amended, use
from torch import nn

import lhkernels as lh

BACKENDS = list(FLAGS)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def go_on(params, opt, grads):
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        opt.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.float32, {"scale_reference": "initial", "momentum": 0.9, "nesterov": True}),
        (torch.float32, {"lr": torch.tensor(0.02), "momentum": 0.5, "dampening": 0.2}),
        (torch.bfloat16, {"momentum": 0.9, "momentum_dtype": torch.float32}),
        (torch.bfloat16, {"momentum": 0.9, "stochastic_rounding": True}),
    ],
)
def test_resumed_is_uninterrupted_bit_for_bit(backend, dtype, options, monkeypatch):
    flags = use(backend, monkeypatch, dtype)
    params = make_params(dtype=dtype)
    grads = make_grads(params, steps=8)
    make = scale_amended(**{"lr": 0.02, **options}, **flags)
    whole, whole_opt = run(make, params, grads)
    half, opt = run(make, params, grads[:4])
    saved = through_a_file({"opt": opt.state_dict(), "params": [p.detach() for p in half]})
    resumed = [nn.Parameter(p) for p in saved["params"]]
    opt2 = make(resumed)
    opt2.load_state_dict(saved["opt"])
    go_on(resumed, opt2, grads[4:])
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)
        x, y = whole_opt.state[a]["momentum_buffer"], opt2.state[b]["momentum_buffer"]
        assert x.dtype == y.dtype == options.get("momentum_dtype", dtype)
        assert torch.equal(x, y)


def test_groups_added_in_training_resume_in_one_go():
    """n_L is in the checkpoint: it does not depend on when a group was added."""
    head, body = (nn.Parameter(torch.randn(s)) for s in ((10, 8), (8, 6)))
    opt = lh.ScaleAmendedSGD([head], lr=0.1)
    opt.add_param_group({"params": [body]})
    again = lh.ScaleAmendedSGD([{"params": [head]}, {"params": [body]}], lr=0.1)
    assert again.plan.blocks[0].m == 0.8
    again.load_state_dict(through_a_file(opt.state_dict()))
    assert again.plan.blocks == opt.plan.blocks


def test_torch_sgds_checkpoint_loads():
    params = make_params(dtype=torch.float32)
    grads = make_grads(params, steps=6)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    half, sgd = run(lambda ps: torch.optim.SGD(ps, **options), params, grads[:3])
    ours = [nn.Parameter(p.detach().clone()) for p in half]
    opt = lh.ScaleAmendedSGD(ours, lr=1.0, amend=False, foreach=False, scale_reference="initial")
    opt.load_state_dict(through_a_file(sgd.state_dict()))
    group = opt.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.05, 0.9, 0.01)
    # what torch's checkpoint does not know stays as this optimizer was made
    assert (group["amend"], group["scale_reference"]) == (False, "initial")
    assert group["output_units"] == 6
    go_on(ours, opt, grads[3:])
    go_on(half, sgd, grads[3:])
    assert all(map(torch.equal, ours, half))


def test_our_checkpoint_loads_into_torch_sgd():
    params = make_params(dtype=torch.float32)
    grads = make_grads(params, steps=6)
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True}
    half, opt = run(scale_amended(amend=False, foreach=False, **options), params, grads[:3])
    theirs = [nn.Parameter(p.detach().clone()) for p in half]
    sgd = torch.optim.SGD(theirs, lr=1.0)
    sgd.load_state_dict(through_a_file(opt.state_dict()))
    go_on(theirs, sgd, grads[3:])
    go_on(half, opt, grads[3:])
    assert all(map(torch.equal, theirs, half))


def test_momentum_dtype_survives_loading_in_full_precision():
    """torch's load_state_dict rounds state to the parameter's dtype; the values must come back."""
    p = nn.Parameter(torch.randn(64, 64, dtype=torch.bfloat16))
    options = {"lr": 0.1, "momentum": 0.9, "momentum_dtype": torch.float32}
    opt = lh.ScaleAmendedSGD([p], **options)
    p.grad = torch.randn_like(p)
    opt.step()
    before = opt.state[p]["momentum_buffer"].clone()
    assert not torch.equal(before, before.to(torch.bfloat16).float())
    opt.load_state_dict(through_a_file(opt.state_dict()))
    assert torch.equal(opt.state[p]["momentum_buffer"], before)


def test_loaded_buffers_are_copies():
    p = nn.Parameter(torch.randn(4, 4, dtype=torch.bfloat16))
    p.grad = torch.randn_like(p)
    opt = lh.ScaleAmendedSGD([p], lr=0.1, momentum=0.9, momentum_dtype=torch.float32)
    opt.step()
    saved = opt.state_dict()
    kept = saved["state"][0]["momentum_buffer"].clone()
    other = lh.ScaleAmendedSGD([p], lr=0.1, momentum=0.9, momentum_dtype=torch.float32)
    other.load_state_dict(saved)
    other.step()
    assert torch.equal(saved["state"][0]["momentum_buffer"], kept)


def test_wrong_number_of_groups_is_torchs_error():
    p = nn.Parameter(torch.randn(4, 4))
    opt = lh.ScaleAmendedSGD([p])
    two = lh.ScaleAmendedSGD([{"params": [p]}, {"params": [nn.Parameter(torch.randn(2, 2))]}])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        opt.load_state_dict(two.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
def test_the_step_that_dcp_takes_moves_nothing(backend, lr, monkeypatch):
    """torch.distributed.checkpoint creates state by a step with zero gradients and lr 0."""
    flags = use(backend, monkeypatch)
    params = make_params(dtype=torch.float32)
    ours, opt = run(
        scale_amended(lr=lr, momentum=0.9, weight_decay=0.1, **flags),
        params,
        [[torch.zeros_like(p) for p in params]],
    )
    assert all(map(torch.equal, ours, params))
    assert all("momentum_buffer" in opt.state[p] for p in ours)


def test_dcp_round_trip():
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    opt = lh.ScaleAmendedSGD(net.parameters(), lr=0.1, momentum=0.9, scale_reference="initial")
    for _ in range(3):
        net(torch.randn(6, 4)).square().mean().backward()
        opt.step()
    saved = get_optimizer_state_dict(net, opt)
    assert "momentum_buffer" in saved["state"]["0.weight"]
    other = lh.ScaleAmendedSGD(net.parameters(), lr=0.5, momentum=0.1, scale_reference="initial")
    before = [p.detach().clone() for p in net.parameters()]
    set_optimizer_state_dict(net, other, saved)
    assert all(map(torch.equal, net.parameters(), before))
    for p in net.parameters():
        assert torch.equal(other.state[p]["momentum_buffer"], opt.state[p]["momentum_buffer"])
    assert other.param_groups[0]["reference_scale"] == opt.param_groups[0]["reference_scale"]
