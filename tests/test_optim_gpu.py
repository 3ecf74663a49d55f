"""Whole training steps where only a GPU shows all: in a CUDA graph, and through torch.compile."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lhkernels as lh

GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available(),
        reason="needs a CUDA device, and TRITON_INTERPRET=0",
    ),
)
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
OPTIONS = {"momentum": 0.9, "weight_decay": 1e-4}


def assert_close(ours, expected, tolerance):
    """Relative to the largest element; infinite and undefined ones are never close."""
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def captured(step):
    """The step as a CUDA graph, after it was taken three times on another stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@pytest.mark.parametrize("device", DEVICES)
def test_a_capturable_training_step_replays(device):
    """Other batches and other learning rates, against eager steps; on a CPU nothing is captured."""
    x, y = torch.randn(32, 64, device=device), torch.randint(10, (32,), device=device)
    lr = torch.tensor(0.05, device=device)
    steps, models, opts = [], [], []
    for own in ({"lr": lr, "capturable": True}, {"lr": 0.05}):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10)]
        model = nn.Sequential(*layers).to(device)
        opt = lh.ScaleAmendedSGD(model.parameters(), scale_reference="initial", **OPTIONS, **own)

        def step(model=model, opt=opt):
            opt.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            opt.step()

        models.append(list(model.parameters()))
        steps.append(step)
        opts.append(opt)
    replay = captured(steps[0]) if device == "cuda" else steps[0]
    for _ in range(3 if device == "cuda" else 0):  # a capture takes no step
        steps[1]()
    for i in range(8):
        x.normal_()
        y.random_(10)
        lr.fill_(0.05 * 0.8**i)
        opts[1].param_groups[0]["lr"] = lr.item()
        replay()
        steps[1]()
    # The matrix products of a capture may be other ones than outside it.
    assert_close(*models, tolerance=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["fused", "foreach"])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_compiled_step_has_the_eager_steps_numbers(device, way, tensor_lr):
    torch._dynamo.reset()
    p = [torch.randn(s, device=device) for s in [(8, 4), (5,), (3, 2, 3, 3)]]
    twins = [[nn.Parameter(t.clone()) for t in p] for _ in range(2)]
    rates = [torch.tensor(0.1, device=device) if tensor_lr else 0.1 for _ in range(2)]
    opts = [lh.ScaleAmendedSGD(ps, lr=lr, **{way: True}, **OPTIONS) for ps, lr in zip(twins, rates)]
    compiled = torch.compile(opts[0].step, backend="inductor" if device == "cuda" else "eager")
    for i in range(5):
        for opt in opts:
            group = opt.param_groups[0]
            rate = 0.1 * 0.7**i
            group["lr"] = group["lr"].fill_(rate) if tensor_lr else rate
        for ps in zip(*twins):
            ps[0].grad = torch.randn_like(ps[0]) / 10
            ps[1].grad = ps[0].grad.clone()
        compiled()
        opts[1].step()
    assert_close(*twins, tolerance=1e-6)
