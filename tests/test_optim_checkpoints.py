"""Checkpoints: bit for bit resumption, torch.optim.SGD's format, buffers' dtypes, DCP."""

import copy
import io
import math

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


@pytest.mark.parametrize("saved", [{"momentum": math.nan}, {"nesterov": "no"}, {"fused": True}])
def test_a_bad_option_is_refused_before_anything_is_loaded(saved):
    p = nn.Parameter(torch.randn(4, 4))
    opt = lh.ScaleAmendedSGD([p], lr=0.1, momentum=0.9, foreach=True)
    p.grad = torch.randn_like(p)
    opt.step()
    before = copy.deepcopy(opt.state_dict())
    bad = copy.deepcopy(before)
    bad["param_groups"][0].update(lr=0.5, **saved)
    bad["state"][0]["momentum_buffer"].zero_()
    with pytest.raises((ValueError, RuntimeError), match="pass"):
        opt.load_state_dict(bad)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["momentum_buffer"], before["state"][0]["momentum_buffer"])


def test_names_stay_as_the_plan_knows_them():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    plan = lh.Plan(lh.Plan.chain(net.named_parameters()).blocks)
    theirs = torch.optim.SGD([(f"module.{n}", p) for n, p in net.named_parameters()], lr=0.5)
    opt = lh.ScaleAmendedSGD(net.named_parameters(), plan=plan)
    expected = opt.block_scales()
    opt.load_state_dict(theirs.state_dict())
    assert opt.param_groups[0]["lr"] == 0.5
    assert opt.block_scales() == expected
    unnamed = lh.ScaleAmendedSGD(net.parameters())
    unnamed.load_state_dict(theirs.state_dict())  # as torch has it
    assert list(unnamed.block_scales()) == [f"module.{n}" for n in expected]


def template(opt):
    """What torch.distributed.checkpoint does to make the state that it will load."""
    from torch.distributed.checkpoint.state_dict import _init_optim_state

    _init_optim_state(opt)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("amend", [True, False])
@pytest.mark.parametrize(("lr", "reference"), [(0.1, "output"), (torch.tensor(0.1), "initial")])
def test_a_state_template_moves_nothing(backend, lr, amend, reference, monkeypatch):
    """Whatever the weights are before they are loaded: zeros, infinite, not a number."""
    flags = use(backend, monkeypatch)
    params = make_params(dtype=torch.float32)
    values = (0.0, math.nan, math.inf, -0.0, 1e30, 1.0)
    with torch.no_grad():
        for p, value in zip(params, (*values, *values)):
            p.fill_(value)
    before = [p.detach().clone() for p in params]
    opt = lh.ScaleAmendedSGD(
        params, lr=lr, momentum=0.9, amend=amend, scale_reference=reference, **flags
    )
    template(opt)
    for p, old in zip(params, before):
        assert torch.equal(p.detach().view(torch.int32), old.view(torch.int32))
        assert torch.equal(opt.state[p]["momentum_buffer"], torch.zeros_like(p))
    assert opt.param_groups[0]["scale_constant"] is None
    # and afterwards the optimizer is as one that has taken no step
    grads = make_grads(params, steps=2)
    with torch.no_grad():
        for p in params:
            p.copy_(0.2 * torch.randn_like(p))
    expected, fresh = run(
        scale_amended(lr=0.1, momentum=0.9, amend=amend, scale_reference=reference, **flags),
        params,
        grads,
    )
    go_on(params, opt, grads)
    for p, q in zip(params, expected):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert opt.param_groups[0]["scale_constant"] == fresh.param_groups[0]["scale_constant"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_weights_are_refused_when_they_move(backend, monkeypatch):
    p = nn.Parameter(torch.zeros(3, 2))
    opt = lh.ScaleAmendedSGD([("a", p)], lr=0.1, momentum=0.9, **use(backend, monkeypatch))
    template(opt)
    p.grad = torch.ones(3, 2)
    with pytest.raises(ValueError, match="'a' has squared norm 0"):
        opt.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reference", ["output", "initial"])
def test_a_warm_up_from_0_fills_the_buffers(backend, reference, monkeypatch):
    """The first step has lr 0: weights stay, buffers are the paper's, with the same constant."""
    flags = use(backend, monkeypatch)
    params = [nn.Parameter(0.2 * torch.randn(s)) for s in ((8, 5), (6, 3, 3, 3), (6,), (4, 6), ())]
    grads = make_grads(params, steps=3)
    options = {"momentum": 0.9, "weight_decay": 0.1, "scale_reference": reference, **flags}
    ours = [nn.Parameter(p.detach().clone()) for p in params]
    opt = lh.ScaleAmendedSGD(ours, lr=0.0, **options)
    scales = list(opt.block_scales().values())
    go_on(ours, opt, grads[:1])
    assert all(map(torch.equal, ours, params))
    assert opt.param_groups[0]["scale_constant"] is None
    for p, g, s in zip(ours, grads[0], scales):
        expected = s.float() * (g + 0.1 * p.detach())
        torch.testing.assert_close(opt.state[p]["momentum_buffer"], expected)
    before, buffers = [p.detach().clone() for p in ours], [opt.state[p] for p in ours]
    old = [state["momentum_buffer"].clone() for state in buffers]
    opt.param_groups[0]["lr"] = 0.1
    go_on(ours, opt, grads[1:2])
    for p, w, g, s, b in zip(ours, before, grads[1], scales, old):
        expected = w - 0.1 * (0.9 * b + s.float() * (g + 0.1 * w))
        torch.testing.assert_close(p.detach(), expected)


NETS = {
    "whole": lambda net: list(net.named_parameters()),
    "groups": lambda net: [
        {"params": list(net[1].parameters()), "lr": 0.3},
        {"params": list(net[0].parameters()), "momentum": 0.5},
    ],
}


def trained(cls, net, params, **options):
    opt = cls(params, lr=0.1, momentum=0.9, **options)
    for _ in range(3):
        opt.zero_grad()
        net(torch.randn(6, 4)).square().mean().backward()
        opt.step()
    opt.zero_grad()
    return opt


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
@pytest.mark.parametrize("params", NETS.values(), ids=NETS)
@pytest.mark.parametrize("through", ["memory", "files"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (torch.optim.SGD, lh.ScaleAmendedSGD),
        (lh.ScaleAmendedSGD, torch.optim.SGD),
        (lh.ScaleAmendedSGD, lh.ScaleAmendedSGD),
    ],
)
def test_dcp_round_trip(theirs, ours, through, params, flat, tmp_path):
    """As docs/faq.md says: SGD's checkpoint lacks some options, which come from our own."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    own = {"scale_reference": "initial", "stochastic_rounding": True}
    saved_opt = trained(theirs, net, params(net), **(own if theirs is not torch.optim.SGD else {}))
    saved = get_optimizer_state_dict(net, saved_opt, options=options)
    opt = ours(params(net), lr=0.5, **(own if ours is not torch.optim.SGD else {}))
    before = [p.detach().clone() for p in net.parameters()]
    for group in opt.param_groups:
        group["momentum"] = 0.1
    state = get_optimizer_state_dict(net, opt, options=options)
    if through == "files":
        dcp.save({"opt": saved}, checkpoint_id=tmp_path, no_dist=True)
        planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
        dcp.load({"opt": state}, checkpoint_id=tmp_path, planner=planner, no_dist=True)
    else:
        state = {**state, **saved} if flat else saved
    set_optimizer_state_dict(net, opt, state, options=options)
    assert all(map(torch.equal, net.parameters(), before))
    for p in net.parameters():
        for key, value in saved_opt.state[p].items():
            assert torch.equal(opt.state[p][key], value)
    for group, expected in zip(opt.param_groups, saved_opt.param_groups, strict=True):
        shared = group.keys() & expected.keys() - {"params"}
        assert {"lr", "momentum"} <= shared
        assert {k: group[k] for k in shared} == {k: expected[k] for k in shared}


def test_the_constant_is_of_all_blocks_as_soon_as_one_moves():
    """And in a step in which none does, weights that can't count do not."""
    a, b = nn.Parameter(torch.full((2, 2), 0.5)), nn.Parameter(torch.ones(2, 2))
    zero = nn.Parameter(torch.zeros(2, 2))
    groups = [{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.0}]
    opt = lh.ScaleAmendedSGD(groups, momentum=0.9, scale_reference="initial")
    foretold = [float(s) for s in opt.block_scales().values()]
    for p in (a, b, zero):
        p.grad = torch.ones(2, 2)
    opt.step()
    assert [float(opt.state[p]["momentum_buffer"][0, 0]) for p in (a, b)] == pytest.approx(foretold)
    assert foretold == pytest.approx([0.5, 2.0])

    warm_up = lh.ScaleAmendedSGD([b, zero], lr=0.0, momentum=0.9, scale_reference="initial")
    warm_up.step()
    assert torch.equal(warm_up.state[b]["momentum_buffer"], torch.ones(2, 2))
    assert warm_up.param_groups[0]["scale_constant"] is None
