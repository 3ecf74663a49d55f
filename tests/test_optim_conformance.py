"""torch.optim's schedulers, averages and derivatives: with amend=False all is as with its SGD."""

import copy

import pytest
import torch
from cases import use
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.optim import SGD
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import lhkernels as lh

STEPS = 12
# Each to its end and beyond. What should end at 0 ends at -1e-18 in some of them.
SCHEDULERS = {
    "lambda": lambda opt: lrs.LambdaLR(opt, [lambda e: 0.9**e, lambda e: max(0.0, 1 - e / 7)]),
    "multiplicative": lambda opt: lrs.MultiplicativeLR(opt, lambda e: 0.7),
    "step": lambda opt: lrs.StepLR(opt, step_size=3, gamma=0.3),
    "multistep": lambda opt: lrs.MultiStepLR(opt, milestones=[2, 5, 5, 9], gamma=0.3),
    "constant": lambda opt: lrs.ConstantLR(opt, factor=0.3, total_iters=4),
    "linear": lambda opt: lrs.LinearLR(opt, start_factor=0.2, total_iters=6),
    "linear to 0": lambda opt: lrs.LinearLR(opt, 0.3, end_factor=0.0, total_iters=9),
    "exponential": lambda opt: lrs.ExponentialLR(opt, gamma=0.6),
    "cosine": lambda opt: lrs.CosineAnnealingLR(opt, T_max=STEPS - 1),
    "cosine and back": lambda opt: lrs.CosineAnnealingLR(opt, T_max=4),
    "restarts": lambda opt: lrs.CosineAnnealingWarmRestarts(opt, T_0=2, T_mult=2),
    "polynomial": lambda opt: lrs.PolynomialLR(opt, total_iters=9),
    "polynomial 2": lambda opt: lrs.PolynomialLR(opt, total_iters=9, power=2.0),
    "one cycle": lambda opt: lrs.OneCycleLR(opt, 0.3, total_steps=STEPS + 1),
    "one cycle, three phases": lambda opt: lrs.OneCycleLR(
        opt, 0.3, total_steps=STEPS + 1, anneal_strategy="linear", three_phase=True
    ),
    "cyclic": lambda opt: lrs.CyclicLR(opt, 0.01, 0.2, step_size_up=3),
    "cyclic from 0": lambda opt: lrs.CyclicLR(
        opt, 0.0, 0.2, step_size_up=3, step_size_down=2, mode="triangular2", base_momentum=0.0
    ),
    "cyclic, momentum above 1": lambda opt: lrs.CyclicLR(
        opt, 0.01, 0.1, step_size_up=2, mode="exp_range", gamma=0.9, max_momentum=1.5
    ),
    "plateau": lambda opt: lrs.ReduceLROnPlateau(opt, patience=1, cooldown=1),
    "sequential": lambda opt: lrs.SequentialLR(
        opt,
        [lrs.LinearLR(opt, 0.1, total_iters=3), lrs.CosineAnnealingLR(opt, T_max=5)],
        milestones=[3],
    ),
    "chained": lambda opt: lrs.ChainedScheduler(
        [lrs.ConstantLR(opt, 0.5, total_iters=4), lrs.LinearLR(opt, 1.0, 0.0, total_iters=9)]
    ),
    "swa": lambda opt: SWALR(opt, swa_lr=[0.05, 0.0], anneal_epochs=5),
    "swa, linear": lambda opt: SWALR(opt, 0.0, anneal_epochs=5, anneal_strategy="linear"),
}


def ours(params, **options):
    return lh.ScaleAmendedSGD(params, amend=False, **options)


def networks(optimizer, *, lr=0.1, **options):
    """A small network, its average, and an optimizer with two groups; the same ones every time."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 5))
    groups = [
        {"params": net[:2].parameters()},
        {"params": net[2:].parameters(), "lr": copy.copy(lr) / 3},
    ]
    return net, optimizer(groups, lr=lr, momentum=0.9, weight_decay=0.01, **options)


def step(net, opt):
    opt.zero_grad()
    net(torch.randn(4, 2, 5, 5)).square().mean().backward()
    opt.step()


def scheduled(optimizer, make_scheduler, **options):
    """Every step's lr and momentum in each group, and the weights at the end."""
    net, opt = networks(optimizer, **options)
    scheduler = make_scheduler(opt)
    seen = []
    for i in range(STEPS):
        seen += [(float(group["lr"]), group["momentum"]) for group in opt.param_groups]
        step(net, opt)
        # a loss that goes down once, then no more
        scheduler.step(*[float(i == 0)] if isinstance(scheduler, lrs.ReduceLROnPlateau) else [])
    return seen, list(net.parameters())


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("backend", ["reference", "foreach", "cpp"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_to_its_end(name, backend, tensor_lr, monkeypatch):
    flags = use(backend, monkeypatch)

    def run(optimizer, **options):
        lr = torch.tensor(0.1) if tensor_lr else 0.1
        return scheduled(optimizer, SCHEDULERS[name], lr=lr, **options)

    seen, params = run(ours, **flags)
    expected, theirs = run(SGD, foreach=backend == "foreach")
    assert seen == expected
    assert len(set(seen)) > 2  # something was scheduled
    assert all(map(torch.equal, params, theirs))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_and_its_optimizer_are_resumed(name):
    make_scheduler, states = SCHEDULERS[name], []
    for optimizer in (ours, SGD):
        (net, opt), (net2, opt2) = networks(optimizer), networks(optimizer)
        scheduler, scheduler2 = make_scheduler(opt), make_scheduler(opt2)
        arguments = [1.0] if isinstance(scheduler, lrs.ReduceLROnPlateau) else []
        for _ in range(5):
            step(net, opt)
            scheduler.step(*arguments)
        net2.load_state_dict(net.state_dict())
        opt2.load_state_dict(opt.state_dict())
        scheduler2.load_state_dict(scheduler.state_dict())
        for _ in range(STEPS - 5):
            step(net2, opt2)
            scheduler2.step(*arguments)
        states.append((scheduler2.get_last_lr(), list(net2.parameters())))
    assert states[0][0] == states[1][0]
    assert all(map(torch.equal, states[0][1], states[1][1]))


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "ema"])
def test_averaged_weights(average):
    """Of a run with torch.optim.swa_utils as its page shows it."""
    averages = []
    for optimizer in (ours, SGD):
        net, opt = networks(optimizer)
        averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=average is not None)
        scheduler, swa = lrs.CosineAnnealingLR(opt, T_max=9), SWALR(opt, 0.02, anneal_epochs=3)
        for i in range(9):
            step(net, opt)
            if i < 4:
                scheduler.step()
            else:
                averaged.update_parameters(net)
                swa.step()
        update_bn([torch.randn(4, 2, 5, 5) for _ in range(3)], averaged)
        averages.append(averaged)
    mine, theirs = (a.state_dict() for a in averages)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.3, "maximize": True},
    ],
)
def test_derivatives_through_steps(options):
    """With respect to weight, momentum buffer and gradients as torch's; and to lr and weight decay,
    for which torch's SGD can't take two steps with momentum."""

    def two_steps(optimizer, weight, buffer, *grads, lr, weight_decay):
        p = weight.clone()
        opt = optimizer([p], lr=lr, weight_decay=weight_decay, differentiable=True, **options)
        opt.state[p]["momentum_buffer"] = buffer.clone()
        for grad in grads:
            p.grad = grad
            opt.step()
        return p, opt.state[p]["momentum_buffer"]

    def with_derivatives(optimizer):
        p, buffer = two_steps(optimizer, *tensors, lr=0.3, weight_decay=0.1)
        return p, buffer, *torch.autograd.grad((p.sin() + buffer.sin()).sum(), tensors)

    f64 = {"dtype": torch.float64, "requires_grad": True}
    tensors = [torch.randn(3, 2, **f64) for _ in range(4)]
    assert all(map(torch.equal, with_derivatives(ours), with_derivatives(SGD)))

    def of_rates(lr, weight_decay, *tensors):
        return two_steps(ours, *tensors, lr=lr, weight_decay=weight_decay)

    arguments = [torch.tensor(0.3, **f64), torch.tensor(0.1, **f64), *tensors]
    assert gradcheck(of_rates, arguments)
    assert gradgradcheck(of_rates, arguments)
