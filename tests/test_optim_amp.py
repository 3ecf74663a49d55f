"""AMP: every backend can unscale and skip; with fused=True GradScaler leaves that to the step."""

import copy
import pickle

import pytest
import torch
from cases import FLAGS, make_grads, make_params, run, scale_amended, use
from torch import nn

import lhkernels as lh

BACKENDS = list(FLAGS)
OPTIONS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def step(opt, params, grads, *, grad_scale=None, found_inf=None):
    for p, g in zip(params, grads):
        p.grad = g.clone()
    opt.grad_scale, opt.found_inf = grad_scale, found_inf
    opt.step()
    del opt.grad_scale, opt.found_inf
    for p, g in zip(params, grads):
        assert torch.equal(p.grad.nan_to_num(), g.nan_to_num()), "p.grad was written"


def bits(params, opt):
    return [p.detach().clone() for p in params], {
        i: opt.state[p]["momentum_buffer"].clone() for i, p in enumerate(params) if p in opt.state
    }


def equal(a, b):
    return (
        all(map(torch.equal, a[0], b[0]))
        and a[1].keys() == b[1].keys()
        and all(torch.equal(a[1][i], b[1][i]) for i in a[1])
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_unscaled(backend, monkeypatch):
    flags = use(backend, monkeypatch)
    params = make_params(dtype=torch.float32)
    grads = make_grads(params, steps=3)
    expected, _ = run(scale_amended(**OPTIONS, **flags), params, grads)
    ours = [nn.Parameter(p.detach().clone()) for p in params]
    opt = lh.ScaleAmendedSGD(ours, **OPTIONS, **flags)
    for g in grads:
        scaled = [1024 * x for x in g]  # a power of 2: unscaling is exact
        step(opt, ours, scaled, grad_scale=torch.tensor(1024.0), found_inf=torch.zeros(()))
    assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"dampening": 0.5}, {"scale_reference": "initial"}])
@pytest.mark.parametrize("found_inf", [1.0, 3.0])
def test_an_overflow_is_as_if_the_step_had_not_been(backend, options, found_inf, monkeypatch):
    """On the first step and in between; found_inf is a sum over devices, so not only 1."""
    flags = use(backend, monkeypatch)
    params = make_params(dtype=torch.float32)
    grads = make_grads(params, steps=4)
    options = {**OPTIONS, **options, **flags}
    expected, expected_opt = run(scale_amended(**options), params, grads)
    ours = [nn.Parameter(p.detach().clone()) for p in params]
    opt = lh.ScaleAmendedSGD(ours, **options)
    scale, overflow = torch.tensor(8.0), torch.tensor(found_inf)
    for g in grads:
        before = bits(ours, opt)
        bad = [torch.full_like(x, float("inf")) for x in g]
        step(opt, ours, bad, grad_scale=scale, found_inf=overflow)
        assert equal(bits(ours, opt), before)
        step(opt, ours, [8 * x for x in g], grad_scale=scale, found_inf=torch.zeros(()))
    assert equal(bits(ours, opt), bits(expected, expected_opt))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overflow_draws_no_random_bits(backend, monkeypatch):
    flags = use(backend, monkeypatch, torch.bfloat16)
    params = [nn.Parameter(torch.randn(40, 30).bfloat16())]
    grads = make_grads(params, steps=3)
    make = scale_amended(lr=1e-3, stochastic_rounding=True, **flags)
    expected, _ = run(make, params, grads)
    ours = [nn.Parameter(p.detach().clone()) for p in params]
    opt = make(ours)
    for g in grads:
        for found in (torch.ones(()), torch.ones(1), torch.zeros(1)):
            step(opt, ours, g, grad_scale=torch.ones(()), found_inf=found)
    assert torch.equal(ours[0], expected[0])


@pytest.mark.parametrize("backend", [*BACKENDS, "default"])
def test_torchs_grad_scaler(backend, monkeypatch):
    """At a realistic scale: the numbers of training without it, overflows skipped, scale halved."""
    flags = {} if backend == "default" else use(backend, monkeypatch)
    net = nn.Linear(4, 3)
    expected = copy.deepcopy(net)
    opt = lh.ScaleAmendedSGD(net.parameters(), **OPTIONS, **flags)
    plain = lh.ScaleAmendedSGD(expected.parameters(), **OPTIONS, **flags)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for overflow in (True, False, True, False):
        x = torch.randn(5, 4)
        before = bits(list(net.parameters()), opt)
        opt.zero_grad()
        scaler.scale(net(x).square().sum() * (float("inf") if overflow else 1.0)).backward()
        if not overflow:
            plain.zero_grad()
            expected(x).square().sum().backward()
            plain.step()
        scaler.step(opt)
        if not overflow:  # fused, the step unscales as it reads; else GradScaler unscales p.grad
            left = scaler.get_scale() if flags.get("fused") else 1.0
            for p, q in zip(net.parameters(), expected.parameters()):
                assert torch.equal(p.grad, left * q.grad)
        scaler.update()
        after = bits(list(net.parameters()), opt)
        assert equal(after, before) == overflow
        assert equal(after, bits(list(expected.parameters()), plain))
    assert scaler.get_scale() == 2.0**14
    assert not hasattr(opt, "found_inf")


def test_only_fused_true_takes_unscaling_over():
    """As torch has it; frameworks refuse to clip gradients where the step unscales them."""
    p = nn.Parameter(torch.ones(2, 2))
    for flags in ({}, {"fused": False}, {"foreach": True}, {"fused": True}):
        theirs, ours = torch.optim.SGD([p], **flags), lh.ScaleAmendedSGD([p], **flags)
        expected = getattr(theirs, "_step_supports_amp_scaling", False)
        assert expected == bool(flags.get("fused"))
        ours.load_state_dict(lh.ScaleAmendedSGD([p], fused=not flags.get("fused")).state_dict())
        for opt in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert opt._step_supports_amp_scaling == expected
    assert not hasattr(lh.ScaleAmendedSGD, "_step_supports_amp_scaling")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("amend", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e-8, 1e-6])
def test_gradients_survive_unscaling(backend, amend, dtype, size, monkeypatch):
    """Of 1e-8 at a scale of 65536: float16 holds 65536e-8, and not 1e-8."""
    p = nn.Parameter(torch.randn(9, 7).to(dtype) / 8)
    scaled = (65536 * size * torch.randn(9, 7)).to(dtype)
    true = scaled.double() / 65536
    opt = lh.ScaleAmendedSGD(
        [p], lr=1e-5, momentum=0.9, momentum_dtype=torch.float32, amend=amend,
        **use(backend, monkeypatch, dtype),
    )  # fmt: skip
    s = p.detach().double().square().sum() / 9 if amend else 1.0
    step(opt, [p], [scaled], grad_scale=torch.tensor(65536.0), found_inf=torch.zeros(()))
    torch.testing.assert_close(
        opt.state[p]["momentum_buffer"].double(), s * true, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overflow_leaves_no_first_buffer(backend, monkeypatch):
    """Momentum raised in mid-training, then an overflow: the next gradient is still the first."""
    p = nn.Parameter(torch.ones(2, 2))
    opt = lh.ScaleAmendedSGD([p], lr=0.1, amend=False, dampening=0.5, **use(backend, monkeypatch))
    grads = [torch.full((2, 2), 0.5)]
    step(opt, [p], grads)
    opt.param_groups[0]["momentum"] = 0.9
    bad = [torch.full((2, 2), float("inf"))]
    step(opt, [p], bad, grad_scale=torch.ones(()), found_inf=torch.ones(()))
    assert "momentum_buffer" not in opt.state.get(p, {})
    step(opt, [p], grads, grad_scale=torch.ones(()), found_inf=torch.zeros(()))
    assert torch.equal(opt.state[p]["momentum_buffer"], grads[0])
