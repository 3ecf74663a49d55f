"""Under torch.compile: the eager bits, and no graph of its own for another learning rate."""

import pytest
import torch
import torch._dynamo as dynamo
from cases import FLAGS, use
from torch import nn
from torch._dynamo.testing import CompileCounter

import lhkernels as lh

RATES = [(0.1 / (1 + step), 0.9 - 0.05 * step) for step in range(8)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(compiled, whole, as_tensor, flags, make=lh.ScaleAmendedSGD):
    """Weights after steps with another lr and momentum each; graphs and breaks."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    net, counter = network(), CompileCounter()
    lr = torch.tensor(0.1) if as_tensor else 0.1
    opt = make(net.parameters(), lr=lr, momentum=0.9, weight_decay=0.01, **flags)
    step = torch.compile(opt.step, backend=counter) if compiled and not whole else opt.step

    def iteration(x):
        opt.zero_grad()
        net(x).square().sum().backward()
        step()

    if compiled and whole:
        iteration = torch.compile(iteration, backend=counter)
    generator = torch.Generator().manual_seed(1)
    for rate, momentum in RATES:
        group = opt.param_groups[0]
        group["lr"] = group["lr"].fill_(rate) if as_tensor else rate
        group["momentum"] = momentum
        iteration(torch.randn(5, 6, generator=generator))
    breaks = sum(dynamo.utils.counters["graph_break"].values())
    return [p.detach() for p in net.parameters()], counter.frame_count, breaks


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("backend", FLAGS)
def test_a_compiled_step(backend, as_tensor, monkeypatch):
    flags = use(backend, monkeypatch)
    ours, graphs, breaks = train(True, False, as_tensor, flags)
    eager, *_ = train(False, False, as_tensor, flags)
    assert all(map(torch.equal, ours, eager))
    assert graphs <= 2
    assert breaks <= 2


def test_a_compiled_training_step_around_it():
    """With plain SGD in its place there are as many breaks, and more graphs."""
    ours, graphs, breaks = train(True, True, True, {})
    eager, *_ = train(False, True, True, {})
    *_, graphs_of_sgd, breaks_of_sgd = train(True, True, True, {}, torch.optim.SGD)
    for compiled, expected in zip(ours, eager):
        torch.testing.assert_close(compiled, expected)
    assert graphs <= min(2, graphs_of_sgd)
    assert breaks <= breaks_of_sgd
