"""torch's schedulers drive the optimizer as they drive torch.optim.SGD, to their ends."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedule
from torch.optim.swa_utils import SWALR

import lhkernels as lh

STEPS = 12
SCHEDULERS = {
    "LambdaLR": lambda o: schedule.LambdaLR(o, lambda t: t / 5),  # a warm-up, from 0
    "MultiplicativeLR": lambda o: schedule.MultiplicativeLR(o, lambda t: 0.5),
    "StepLR": lambda o: schedule.StepLR(o, 3, gamma=0.0),
    "MultiStepLR": lambda o: schedule.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: schedule.ConstantLR(o, factor=0.1, total_iters=4),
    "LinearLR": lambda o: schedule.LinearLR(o, 1.0, end_factor=0.0, total_iters=10),
    "ExponentialLR": lambda o: schedule.ExponentialLR(o, gamma=1e-3),
    "PolynomialLR": lambda o: schedule.PolynomialLR(o, total_iters=10, power=1.5),
    "CosineAnnealingLR": lambda o: schedule.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: schedule.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedule.CyclicLR(o, 0.0, 0.1, step_size_up=3, base_momentum=0.0),
    "OneCycleLR": lambda o: schedule.OneCycleLR(o, 0.1, total_steps=STEPS + 1, max_momentum=1.2),
    "ReduceLROnPlateau": lambda o: schedule.ReduceLROnPlateau(o, factor=1e-9, patience=0, eps=0),
    "SWALR": lambda o: SWALR(o, swa_lr=0.0, anneal_epochs=5),
    "ChainedScheduler": lambda o: schedule.ChainedScheduler(
        [schedule.ConstantLR(o, 0.1, 3), schedule.LinearLR(o, 1.0, 0.0, 9)]
    ),
    "SequentialLR": lambda o: schedule.SequentialLR(
        o, [schedule.LinearLR(o, 0.0001, 1.0, 4), schedule.LinearLR(o, 1.0, 0.0, 7)], [4]
    ),
}


def train(optimizer, make, grads):
    """The weights after each step and what the scheduler has set."""
    scheduler = SCHEDULERS[make](optimizer)
    group = optimizer.param_groups[0]
    history = []
    for step in grads:
        for p, g in zip(group["params"], step):
            p.grad = g.clone()
        optimizer.step()
        history.append([p.detach().clone() for p in group["params"]])
        history.append([torch.as_tensor(float(group[key])) for key in ("lr", "momentum")])
        scheduler.step(1.0) if make == "ReduceLROnPlateau" else scheduler.step()
    return history


@pytest.mark.parametrize("tensors", [False, True], ids=["floats", "tensors"])
@pytest.mark.parametrize("nesterov", [False, True], ids=["", "nesterov"])
@pytest.mark.parametrize("make", SCHEDULERS)
def test_schedules_to_their_ends(make, nesterov, tensors):
    params = [nn.Parameter(0.1 * torch.randn(shape)) for shape in ((7, 5), (9,))]
    grads = [[torch.randn_like(p).detach() for p in params] for _ in range(STEPS)]
    options = {"lr": 0.1, "momentum": 0.9}
    if tensors:
        options = {name: torch.tensor(value) for name, value in options.items()}
    options["nesterov"] = nesterov
    runs = []
    for cls, own in (
        (torch.optim.SGD, {"foreach": False}),
        (lh.ScaleAmendedSGD, {"amend": False}),
        (lh.ScaleAmendedSGD, {}),
    ):
        optimizer = cls(copy.deepcopy(params), **copy.deepcopy(options), **own)
        runs.append(train(optimizer, make, grads))
    for theirs, ours, amended in zip(*runs, strict=True):
        assert all(map(torch.equal, theirs, ours))
        assert all(x.isfinite().all() for x in amended)
    # amended, other numbers, but the same schedule
    assert all(map(torch.equal, runs[0][-1], runs[2][-1]))


def test_what_a_schedule_leaves_slightly_negative_goes_on_as_sgd():
    """LinearLR's end is -1e-18 where rounding has it so; a checkpoint of that loads too."""
    ours = nn.Parameter(torch.randn(4, 3))
    theirs = nn.Parameter(ours.detach().clone())
    ours.grad = theirs.grad = torch.randn(4, 3)
    opt = lh.ScaleAmendedSGD([ours], lr=0.1, momentum=0.9, amend=False)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for optimizer in (opt, sgd):
        optimizer.step()
        for key, value in {"lr": -1e-3, "weight_decay": -1e-3, "momentum": -1e-3}.items():
            optimizer.param_groups[0][key] = value
        optimizer.step()
    opt.load_state_dict(sgd.state_dict())
    opt.step()
    sgd.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("key", ["lr", "weight_decay", "momentum", "dampening"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, torch.tensor(math.inf)])
def test_what_is_no_number_is_refused_in_a_step(key, value):
    p = nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones(3, 2)
    opt = lh.ScaleAmendedSGD([p], lr=0.1)
    opt.param_groups[0][key] = value
    with pytest.raises(ValueError, match=f"{key}=(nan|-?inf) is not a finite number; pass"):
        opt.step()
    assert torch.equal(p, torch.ones(3, 2))


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}, {"fused": True}, {}])
def test_tensor_momentum_and_dampening_are_their_numbers(shape, flags):
    if flags.get("fused") and lh.step.fused_backend("cpu", torch.float32)[0] is None:
        pytest.skip("no fused step here")
    start, grads = torch.randn(4, 3), torch.randn(3, 4, 3)
    results = []
    for wrap in (float, lambda x: torch.full(shape, x)):
        p = nn.Parameter(start.clone())
        opt = lh.ScaleAmendedSGD([p], lr=0.1, momentum=wrap(0.75), dampening=wrap(0.5), **flags)
        for grad in grads:
            p.grad = grad
            opt.step()
        results.append(p.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("momentum", [1.0, 1.2])
def test_momentum_of_1_and_more_is_sgds(momentum):
    start, grads = torch.randn(4, 3), torch.randn(5, 4, 3)
    results = []
    sgd = torch.optim.SGD([nn.Parameter(start)], lr=0.1, momentum=momentum)
    for options in ({"momentum": momentum}, {}):
        p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        opt = lh.ScaleAmendedSGD([p], lr=0.1, amend=False, **options)
        opt.load_state_dict(sgd.state_dict())
        theirs = torch.optim.SGD([q], lr=0.1, momentum=momentum)
        for grad in grads:
            p.grad = q.grad = grad
            opt.step()
            theirs.step()
        assert torch.equal(p, q)
        results.append(p.detach())
    assert torch.equal(*results)
