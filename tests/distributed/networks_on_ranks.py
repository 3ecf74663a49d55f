"""What ranks have in common with one process: a network, its training, and the comparison."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import lhkernels as lh

OPTIONS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def network(dtype=torch.float64, hidden=12) -> nn.Sequential:
    """Rows that no number of ranks divides: uneven parts, and of the last layer empty ones."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 7, bias=False), nn.LayerNorm(7)]
    return nn.Sequential(*layers, nn.Linear(7, 1)).to(dtype)


def train(net, opt, steps=4, seed=1, dtype=torch.float64) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(4, 8, generator=generator, dtype=torch.float64).to(dtype)
        opt.zero_grad()
        net(x).square().sum().backward()
        opt.step()


def whole(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def compare(net, opt, alone, opt_alone, tolerance=1e-12) -> None:
    """Weights, momentum buffers and scales are those of one process."""
    pairs = list(zip(net.parameters(), alone.parameters(), strict=True))
    buffers = [
        (opt.state[p]["momentum_buffer"], opt_alone.state[q]["momentum_buffer"]) for p, q in pairs
    ]
    for (p, _), (buffer, _) in zip(pairs, buffers):
        assert isinstance(buffer, DTensor) == isinstance(p, DTensor)
        if isinstance(p, DTensor):
            assert buffer.placements == p.placements
            assert buffer.shape == p.shape
    for ours, expected in pairs + buffers:
        error = (whole(ours).double() - expected.double()).norm()
        assert error <= tolerance * expected.double().norm(), (error, expected.norm())
    for ours, expected in zip(opt.block_scales().values(), opt_alone.block_scales().values()):
        torch.testing.assert_close(ours, expected, rtol=max(tolerance, 1e-12), atol=0)


def against_one_process(distribute, steps=4, tolerance=1e-12, dtype=torch.float64, **options):
    net, alone = network(dtype), network(dtype)
    distribute(net)
    opt = lh.ScaleAmendedSGD(net.named_parameters(), **{**OPTIONS, **options})
    opt_alone = lh.ScaleAmendedSGD(alone.named_parameters(), **{**OPTIONS, **options})
    for model, optimizer in ((net, opt), (alone, opt_alone)):
        train(model, optimizer, steps, dtype=dtype)
    compare(net, opt, alone, opt_alone, tolerance)
    return net, opt


def mesh(*shape: int, names: tuple[str, ...] | None = None):
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def shard(net, **options) -> None:
    """By layer, as FSDP2 does."""
    options.setdefault("mesh", mesh(dist.get_world_size()))
    for layer in (net[0], net[2], net):
        fully_shard(layer, **options)


def parallelize(net, here) -> None:
    parallelize_module(net, here, {"0": ColwiseParallel(), "2": RowwiseParallel()})
