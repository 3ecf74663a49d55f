"""Plans: the chain's rule, the printed table, and what a wrong plan is told."""

import gc
import warnings

import pytest
import torch
from torch import nn

import lhkernels as lh
from lhkernels import Block, Plan


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    )


def test_chain_gives_every_parameter_its_rule():
    net = small_net()
    net.register_parameter("temperature", nn.Parameter(torch.tensor(2.0)))
    net.register_parameter("nothing", nn.Parameter(torch.empty(0, 4)))
    plan = Plan.chain(net.named_parameters())
    rules = {b.parameter: (b.kind, b.units, b.m, b.coefficient, b.uses_norm) for b in plan.blocks}
    assert rules == {
        "temperature": ("plain", 1, 1.0, 1.0, False),
        "nothing": ("plain", 1, 1.0, 1.0, False),
        "0.weight": ("weight", 8, 10 / 8, 1 / 10, True),
        "0.bias": ("vector", 8, 10 / 8, 8 / 10, False),
        "1.weight": ("vector", 8, 10 / 8, 8 / 10, False),
        "1.bias": ("vector", 8, 10 / 8, 8 / 10, False),
        "4.weight": ("weight", 10, 1.0, 1 / 10, True),
        "4.bias": ("vector", 10, 1.0, 1.0, False),
    }


def test_vectors_alone_are_plain():
    assert {b.kind for b in Plan.chain([torch.ones(3), torch.ones(4)]).blocks} == {"plain"}


def test_output_units_and_plain():
    net = small_net()
    plan = Plan.chain(net.named_parameters(), output_units=5, plain=["4.weight"])
    by_name = {b.parameter: b for b in plan.blocks}
    assert by_name["0.weight"].coefficient == 1 / 5
    assert by_name["4.weight"].coefficient == 1
    assert not by_name["4.weight"].uses_norm
    # without the last linear layer, the last block is the convolution
    assert Plan.chain(net.named_parameters(), plain=["4.weight"]).blocks[0].coefficient == 1 / 8


def test_the_table_reads_well():
    lines = str(Plan.chain(small_net().named_parameters())).splitlines()
    assert lines[0] == "chain, n_L = 10: 2 blocks, 6 parameters"
    assert lines[1].split() == ["parameter", "shape", "kind", "units", "m", "s"]
    assert lines[3].split() == ["0", "0.weight", "8x3x3x3", "weight", "8", "1.25", "0.1", "||W||^2"]
    assert lines[4].split() == ["1", "0.bias", "8", "vector", "8", "1.25", "0.8"]
    assert len(lines) == 9
    assert max(map(len, lines)) < 80
    assert "scalar" in str(Plan.chain([torch.ones(2, 2), torch.ones(())]))


def test_a_plan_of_ones_own():
    net = small_net()
    plan = Plan(
        [
            Block("4.weight", (10, 32), units=10, m=0.5),
            Block("0.bias", (8,), "vector", 8, 4),
            Block("0.weight", (8, 3, 3, 3), "plain"),
        ]
    )
    opt = lh.ScaleAmendedSGD(net.named_parameters(), lr=0.1, plan=plan)
    scales = opt.block_scales()
    expected = net[4].weight.detach().square().sum() / (10 * 0.5)
    torch.testing.assert_close(scales["4.weight"], expected)
    assert scales["0.bias"] == 0.25
    assert {scales[n].item() for n in ("0.weight", "1.weight", "1.bias", "4.bias")} == {1.0}
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(before[name] - p, torch.full_like(p, 0.1) * scales[name])


def test_positions_stand_for_names():
    params = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 4))]
    by_position = lh.ScaleAmendedSGD(params, plan=Plan.chain(params, plain=[0]))
    plan = Plan([Block(0, (4, 3), "plain"), Block(1, (2, 4))])
    named = lh.ScaleAmendedSGD([("a", params[0]), ("b", params[1])], plan=plan)
    assert list(by_position.block_scales()) == [0, 1]
    assert by_position.block_scales()[0] == 1
    assert named.block_scales()["b"] == params[1].square().sum()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda n: Plan([Block("0.wait", (8, 3, 3, 3))]),
            ["'0.wait'", "does not have", "0.weight"],
        ),
        (
            lambda n: Plan([Block("0.weight", (8, 3, 5, 5))]),
            ["'0.weight'", "(8, 3, 5, 5)", "(8, 3, 3, 3)"],
        ),
        (lambda n: Plan([Block("0.weight", (8, 3, 3, 3)), Block(0, (8, 3, 3, 3))]), ["twice"]),
        (lambda n: Plan([Block(0, (8, 3, 3, 3)), Block(0, (8, 3, 3, 3))]), ["twice"]),
        (lambda n: Plan([Block(17, (8,))]), ["17", "does not have"]),
        (lambda n: Plan([Block(0, (8,), m=0.0)]), ["m=0.0", "0"]),
        (lambda n: Plan([Block(0, (8,), m=float("nan"))]), ["m=nan"]),
        (lambda n: Plan([Block(0, (8,), "wait")]), ["kind='wait'", "plain"]),
        (lambda n: Plan([Block(0, (8,), units=0)]), ["units=0"]),
        (lambda n: Plan.chain(n.named_parameters(), plain=["head"]), ["plain='head'", "0.weight"]),
        (
            lambda n: Plan.chain(n.parameters(), plain=["head"]),
            ["plain='head'", "named_parameters"],
        ),
        (lambda n: Plan.chain(n.parameters(), output_units=0), ["output_units=0"]),
    ],
)
def test_wrong_plans_are_told_what_is_wrong(make, words):
    net = small_net()
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are checked below)
        lh.ScaleAmendedSGD(net.named_parameters(), plan=make(net))
    for word in words:
        assert word in str(error.value)


def test_a_named_plan_finds_its_own_tensors_or_needs_names():
    net, other = small_net(), small_net()
    plan = Plan.chain(net.named_parameters())
    assert lh.ScaleAmendedSGD(net.parameters(), plan=plan).plan.blocks == plan.blocks
    with pytest.raises(ValueError, match=r"pass model.named_parameters\(\)"):
        lh.ScaleAmendedSGD(other.parameters(), plan=plan)
    assert lh.ScaleAmendedSGD(other.named_parameters(), plan=plan).plan.blocks == plan.blocks
    with pytest.raises(TypeError, match="is not a Plan"):
        lh.ScaleAmendedSGD(net.parameters(), plan={"0.weight": 1.0})


def test_tensors_are_found_in_any_order_under_any_name():
    """Groups [head, backbone], a plan by names or by positions; the tensors may be freed."""
    net = small_net()
    groups = [{"params": list(net[4].parameters())}, {"params": list(net[:2].parameters())}]
    by_name = Plan.chain(net.named_parameters())
    rules = [(b.kind, b.m) for b in (*by_name.blocks[4:], *by_name.blocks[:4])]
    for plan in (by_name, Plan.chain(net.parameters())):
        opt = lh.ScaleAmendedSGD([dict(group) for group in groups], plan=plan)
        assert [(b.kind, b.m) for b in opt.plan.blocks] == rules
    assert list(lh.ScaleAmendedSGD(groups, plan=by_name).block_scales())[:1] == ["4.weight"]
    renamed = [(f"my.{i}", p) for i, p in enumerate(net.parameters())]
    opt = lh.ScaleAmendedSGD(renamed, plan=by_name)
    assert [b.m for b in opt.plan.blocks] == [b.m for b in by_name.blocks]
    assert list(opt.block_scales()) == [name for name, _ in renamed]
    kept = by_name.block_of
    assert len(kept) == 6
    del net, groups, renamed, opt
    gc.collect()
    assert len(kept) == 0


def test_a_plan_of_the_whole_network_from_the_start():
    """Frozen layers are in the plan before they are in the optimizer."""
    net = small_net()
    plan = Plan.chain(net.named_parameters())
    whole = lh.ScaleAmendedSGD(net.named_parameters(), plan=plan).block_scales()
    for named in (True, False):
        head, body = (
            list(m.named_parameters(prefix=p) if named else m.parameters())
            for m, p in ((net[4], "4"), (net[0], "0"))
        )
        opt = lh.ScaleAmendedSGD(head, plan=plan)
        opt.add_param_group({"params": body})
        assert opt.block_scales() == {k: whole[k] for k in opt.block_scales()}
        assert list(opt.block_scales()) == ["4.weight", "4.bias", "0.weight", "0.bias"]


def test_a_group_that_does_not_fit_the_plan_is_not_added():
    net = small_net()
    opt = lh.ScaleAmendedSGD(
        net[4].named_parameters(prefix="4"), plan=Plan.chain(net.named_parameters())
    )
    wrong = [("0.weight", nn.Parameter(torch.ones(8, 3, 5, 5)))]
    with pytest.raises(ValueError, match=r"'0\.weight' the shape"):
        opt.add_param_group({"params": wrong})
    assert len(opt.param_groups) == 1


def test_weights_that_the_plan_leaves_out_are_said():
    """Once, and not for vectors, nor where it was said that they are plain."""
    net = small_net()
    plan = Plan([Block("4.weight", (10, 32), units=10)])
    with pytest.warns(UserWarning, match="plan does not name '0.weight', so plain SGD"):
        opt = lh.ScaleAmendedSGD(net.named_parameters(), plan=plan)
    assert str(opt.plan).startswith("plan: 1 blocks, 6 parameters, 5 of them plain SGD\n")
    meant = Plan([*plan.blocks, Block("0.weight", (8, 3, 3, 3), "plain")])
    groups = [
        {"params": list(net[4].named_parameters(prefix="4"))},
        {"params": list(net[:2].named_parameters()), "amend": False},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lh.ScaleAmendedSGD(net.named_parameters(), plan=meant)
        lh.ScaleAmendedSGD(groups, plan=plan)
