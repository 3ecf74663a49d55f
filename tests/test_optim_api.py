"""How ScaleAmendedSGD behaves: options, groups, errors, closures, hooks, scale_reference."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from cases import FLAGS, make_grads, make_params, run, scale_amended, use
from torch import nn

import lhkernels as lh

BACKENDS = list(FLAGS)


def weight(*shape, **options):
    p = nn.Parameter(torch.randn(shape, **options))
    p.grad = torch.randn_like(p)
    return p


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -0.1}, ["lr value: -0.1", ">= 0"]),
        ({"lr": math.nan}, ["lr=nan"]),
        ({"lr": math.inf}, ["lr=inf"]),
        ({"lr": torch.tensor([0.1, 0.2])}, ["lr", "(2,)", "1-element"]),
        ({"lr": torch.tensor(-1.0)}, ["lr value: -1.0"]),
        ({"momentum": -0.1}, ["momentum value: -0.1"]),
        ({"momentum": math.nan}, ["momentum=nan"]),
        ({"momentum": torch.tensor([0.1, 0.2])}, ["momentum", "(2,)", "1-element"]),
        ({"momentum": torch.tensor(0.9, requires_grad=True)}, ["momentum", "requires grad"]),
        ({"dampening": torch.tensor(math.inf)}, ["dampening=inf"]),
        ({"dampening": math.inf}, ["dampening=inf"]),
        ({"lr": "0.1"}, ["lr='0.1'"]),
        ({"momentum": None}, ["momentum=None"]),
        ({"dampening": None}, ["dampening=None"]),
        ({"weight_decay": -1e-4}, ["weight_decay value: -0.0001"]),
        ({"nesterov": True}, ["nesterov=True", "momentum=0.0"]),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ["nesterov", "dampening=0.1"]),
        ({"scale_reference": "first"}, ["scale_reference='first'", "'initial'"]),
        ({"momentum_dtype": torch.int32}, ["momentum_dtype=torch.int32", "float32"]),
        ({"momentum_dtype": "float32"}, ["momentum_dtype='float32'"]),
        ({"momentum_dtype": torch.float8_e4m3fn}, ["momentum_dtype=torch.float8_e4m3fn"]),
        ({"momentum_dtype": torch.complex64}, ["momentum_dtype=torch.complex64"]),
        ({"amend": "no"}, ["amend='no'", "True or False"]),
        ({"amend": None}, ["amend=None"]),
        ({"nesterov": 1, "momentum": 0.9}, ["nesterov=1"]),
        ({"maximize": "no"}, ["maximize='no'"]),
        ({"differentiable": 0}, ["differentiable=0"]),
        ({"capturable": "no"}, ["capturable='no'"]),
        ({"stochastic_rounding": "no"}, ["stochastic_rounding='no'"]),
        ({"fused": "no"}, ["fused='no'", "None"]),
        ({"foreach": 1}, ["foreach=1", "None"]),
    ],
)
def test_bad_options_are_refused(options, words):
    p = weight(3, 2)
    with pytest.raises(ValueError, match="pass") as error:
        lh.ScaleAmendedSGD([p], **options)
    for word in words:
        assert word in str(error.value)
    # and in a group added later, which must leave the optimizer as it was
    opt = lh.ScaleAmendedSGD([p], lr=0.1)
    if "scale_reference" not in options:
        with pytest.raises(ValueError, match="pass") as error:
            opt.add_param_group({"params": [weight(2, 2)], **options})
        assert words[0] in str(error.value)
    assert len(opt.param_groups) == 1


def test_flags_that_exclude_each_other():
    p = weight(3, 2)
    for flags in ({"fused": True, "foreach": True}, {"fused": True, "differentiable": True}):
        with pytest.raises(RuntimeError, match="fused=True"):
            lh.ScaleAmendedSGD([p], **flags)
    with pytest.raises(ValueError, match="share one reference"):
        lh.ScaleAmendedSGD([{"params": [p]}, {"params": [weight(2)], "scale_reference": "initial"}])


def test_options_set_later_are_checked_before_anything_changes():
    """A scheduler or user writes into a group: the step refuses, no group has moved."""
    a, b = weight(3, 2), weight(4, 2)
    before = [p.detach().clone() for p in (a, b)]
    opt = lh.ScaleAmendedSGD([{"params": [a]}, {"params": [b]}], lr=0.1, momentum=0.9)
    opt.param_groups[1]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr=nan"):
        opt.step()
    assert all(map(torch.equal, (a, b), before))
    assert not opt.state


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_zero_and_non_finite_norms_are_refused_first(backend, value, monkeypatch):
    flags = use(backend, monkeypatch)
    a, b, bias = weight(3, 2), weight(4, 2), weight(4)
    with torch.no_grad():
        b.fill_(value)
        bias.zero_()  # has no norm in its factor
    before = a.detach().clone()
    opt = lh.ScaleAmendedSGD([("a", a), ("b", b), ("bias", bias)], lr=0.1, momentum=0.9, **flags)
    with pytest.raises(ValueError, match="'b' has squared norm") as error:
        opt.step()
    assert "amend=False" in str(error.value)
    assert torch.equal(a, before)
    assert not opt.state
    # the remedies work: another value, or no amendment
    with torch.no_grad():
        b.fill_(0.5)
    opt.step()
    assert (b != 0.5).all()
    plain = weight(4, 2)
    with torch.no_grad():
        plain.zero_()
    lh.ScaleAmendedSGD([plain], lr=0.1, amend=False, **flags).step()
    torch.testing.assert_close(plain.detach(), -0.1 * plain.grad)


def test_a_weight_without_gradient_is_not_looked_at():
    a, frozen = weight(3, 2), nn.Parameter(torch.zeros(2, 2))
    opt = lh.ScaleAmendedSGD([a, frozen], lr=0.1)
    opt.step()
    frozen.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="parameter 1 has squared norm 0"):
        opt.step()


def test_sparse_gradients_are_refused():
    a, table = weight(3, 2), nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    before = a.detach().clone()
    opt = lh.ScaleAmendedSGD([("a", a), ("table", table.weight)], lr=0.1)
    with pytest.raises(RuntimeError, match="'table' is sparse"):
        opt.step()
    assert torch.equal(a, before)


def test_closure_and_hooks():
    p = nn.Parameter(torch.ones(2, 2))
    opt = lh.ScaleAmendedSGD([p], lr=0.1)
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))

    def closure():
        calls.append("closure")
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 4
    assert calls == ["pre", "closure", "post"]
    torch.testing.assert_close(p.detach(), torch.full((2, 2), 1 - 0.1 * 2 * 2.0))  # s = 4/2


def test_names_and_positions():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    assert list(lh.ScaleAmendedSGD(net.named_parameters()).block_scales()) == [
        "0.weight",
        "0.bias",
        "1.weight",
    ]
    groups = [{"params": [net[1].weight]}, {"params": net[0].parameters(), "amend": False}]
    opt = lh.ScaleAmendedSGD(groups)
    scales = opt.block_scales()
    assert list(scales) == [0, 1, 2]
    assert scales[1] == scales[2] == 1
    # n_L is the last block's, whatever amends: here the first layer's 4 units
    torch.testing.assert_close(scales[0], net[1].weight.detach().square().sum() / 4)
    assert all(s.dim() == 0 for s in scales.values())


def test_unfrozen_layers_join_below():
    """A group added later does not change n_L, and its blocks get their first step's check."""
    head, body = weight(10, 8), weight(8, 6)
    opt = lh.ScaleAmendedSGD([head], lr=0.1, momentum=0.9)
    opt.step()
    opt.add_param_group({"params": [body], "lr": 0.01})
    assert [b.m for b in opt.plan.blocks] == [1.0, 10 / 8]
    s = body.detach().square().sum() / 10
    torch.testing.assert_close(opt.block_scales()[1], s)
    expected = body.detach() - 0.01 * s * body.grad
    opt.step()
    torch.testing.assert_close(body.detach(), expected)


def test_amendment_per_group_can_change():
    p = weight(3, 2)
    opt = lh.ScaleAmendedSGD([p], lr=0.1)
    opt.step()
    opt.param_groups[0]["amend"] = False
    expected = p.detach() - 0.1 * p.grad
    opt.step()
    torch.testing.assert_close(p.detach(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_initial_reference_is_a_constant_factor(backend, monkeypatch):
    """The steps of scale_reference="initial" are those of "output" with lr / geometric mean."""
    flags = use(backend, monkeypatch)
    params = [
        nn.Parameter(0.3 * torch.randn(shape)) for shape in ((8, 5), (6, 3, 3, 3), (6,), (4, 6))
    ]
    grads = make_grads(params, steps=5)
    initial, opt = run(
        scale_amended(lr=0.1, momentum=0.9, scale_reference="initial", **flags), params, grads
    )
    s = [p.detach().double().square().sum().item() / 4 for p in params]
    n = [p.numel() for p in params]
    blocks = [0, 1, 3]
    mean = math.exp(sum(n[i] * math.log(s[i]) for i in blocks) / sum(n[i] for i in blocks))
    assert opt.param_groups[0]["scale_constant"] == pytest.approx(mean, rel=1e-5)
    output, _ = run(scale_amended(lr=0.1 / mean, momentum=0.9, **flags), params, grads)
    torch.testing.assert_close(initial, output, rtol=1e-4, atol=1e-6)
    # before the first step block_scales says what the constant will be
    fresh = lh.ScaleAmendedSGD(params, scale_reference="initial").block_scales()
    product = math.exp(sum(n[i] * math.log(fresh[i]) for i in blocks) / sum(n[i] for i in blocks))
    assert product == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(fresh[2].item(), 6 / 4 / mean, rtol=1e-5, atol=0)


def test_initial_reference_makes_sgds_rate_fit():
    """Plain parameters keep SGD's own pace; a single block's first step is SGD's."""
    p, scalar = weight(6, 4), weight()
    opt = lh.ScaleAmendedSGD([p, scalar], lr=0.1, scale_reference="initial")
    expected = [q.detach() - 0.1 * q.grad for q in (p, scalar)]
    opt.step()
    torch.testing.assert_close([p.detach(), scalar.detach()], expected)


def test_differentiable_steps_carry_gradients():
    """gradcheck through two steps, with respect to weights, gradients, lr and weight decay; the
    norm in the factor included."""

    def two_steps(w0, g0, g1, lr, weight_decay):
        w = w0.clone()
        options = {"momentum": 0.9, "nesterov": True, "differentiable": True}
        opt = lh.ScaleAmendedSGD([w], lr=lr, weight_decay=weight_decay, **options)
        for g in (g0, g1):
            w.grad = g
            opt.step()
        return w

    args = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    args += [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, 0.1)]
    assert torch.autograd.gradcheck(two_steps, args)


def test_pickle_and_deepcopy_go_on_alike():
    params = make_params(dtype=torch.float32)
    grads = make_grads(params, steps=6)
    plan = lh.Plan.chain(params, output_units=3)
    make = scale_amended(lr=0.05, momentum=0.9, plan=plan, scale_reference="initial")
    whole, _ = run(make, params, grads)
    for clone in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        _, opt = run(make, params, grads[:3])
        opt2 = clone(opt)
        continued = [p for g in opt2.param_groups for p in g["params"]]
        for step in grads[3:]:
            for p, g in zip(continued, step):
                p.grad = g.clone()
            opt2.step()
        assert all(map(torch.equal, continued, whole))
        assert str(opt2.plan) == str(opt.plan)


def test_numpy_scalars_are_numbers():
    p = weight(3, 2)
    expected = p.detach() - 0.1 * p.detach().square().sum() / 3 * p.grad
    lh.ScaleAmendedSGD([p], lr=np.float64(0.1), momentum=np.float64(0.9)).step()
    torch.testing.assert_close(p.detach(), expected)


def test_schedulers_drive_it():
    p = weight(3, 2)
    opt = lh.ScaleAmendedSGD([p], lr=0.4, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append((opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]))
        opt.step()
        scheduler.step() if len(rates) < 10 else None
    assert len({lr for lr, _ in rates}) > 5
    assert len({momentum for _, momentum in rates}) > 5


def test_no_gradient_anywhere_is_no_step():
    p = nn.Parameter(torch.ones(2, 2))
    opt = lh.ScaleAmendedSGD([p], lr=0.1, scale_reference="initial")
    opt.step()
    assert torch.equal(p, torch.ones(2, 2))
    assert opt.param_groups[0]["scale_constant"] is None


def test_fused_without_a_backend_says_why(monkeypatch):
    monkeypatch.setenv("LHKERNELS_FUSED_BACKEND", "wait")
    with pytest.raises(RuntimeError, match="LHKERNELS_FUSED_BACKEND='wait' is unknown"):
        lh.ScaleAmendedSGD([weight(2, 2)], fused=True).step()
    monkeypatch.delenv("LHKERNELS_FUSED_BACKEND")
    p = nn.Parameter(torch.randn(2, 2, device="meta"))
    p.grad = torch.randn(2, 2, device="meta")
    with pytest.raises(RuntimeError, match=r"fused=True, but .* on meta: "):
        lh.ScaleAmendedSGD([p], fused=True, amend=False).step()
