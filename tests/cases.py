"""Option tables, parameter lists and one runner, shared by the optimizer's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lhkernels as lh
from lhkernels.step import fused_backend

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.05},
    "momentum": {"momentum": 0.9},
    "momentum-decay": {"momentum": 0.9, "weight_decay": 0.05},
    "dampening": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01},
    "negative-dampening": {"momentum": 0.8, "dampening": -0.2},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov-decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    "maximize": {"maximize": True},
    "maximize-all": {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True, "maximize": True},
    "zero-lr": {"lr": 0.0, "momentum": 0.9},
    "tensor-lr": {"lr": torch.tensor(0.03), "momentum": 0.9, "weight_decay": 0.05},
    "tensor-lr-1d": {"lr": torch.tensor([0.03]), "momentum": 0.9, "nesterov": True},
}

SHAPES = [(7, 5), (4, 3, 3, 3), (9,), (), (0, 3), (1,), (1, 1), (33, 17), (2, 65)]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]

FLAGS: dict[str, dict[str, Any]] = {
    "reference": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "cpp": {"fused": True},
    "triton": {"fused": True},
}


def use(backend: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32) -> dict:
    """The optimizer's flags for a backend; skips where it can't run on CPU tensors of ``dtype``."""
    if backend in ("cpp", "triton"):
        monkeypatch.setenv("LHKERNELS_FUSED_BACKEND", backend)
        _, reason = fused_backend("cpu", dtype)
        if reason is not None:
            pytest.skip(f"{backend}: {reason}")
    return dict(FLAGS[backend])


def make_params(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64
) -> list[nn.Parameter]:
    """Seeded normal parameters, small so that factors are about 1; the last is channels_last."""
    params = [nn.Parameter(0.2 * torch.randn(shape, dtype=dtype)) for shape in shapes]
    last = 0.2 * torch.randn(6, 5, 3, 3, dtype=dtype)
    return [*params, nn.Parameter(last.to(memory_format=torch.channels_last))]


def make_grads(params: Sequence[Tensor], steps: int) -> list[list[Tensor]]:
    """Normal gradients for some steps, of the parameters' layout."""
    return [[torch.randn_like(p).detach() for p in params] for _ in range(steps)]


def run(
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    params: Sequence[Tensor],
    grads: Sequence[Sequence[Tensor | None]],
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Step copies of the parameters through the gradients, none of which may be written."""
    copies = [copy.deepcopy(p) for p in params]
    optimizer = make_optimizer(copies)
    for step in grads:
        for p, g in zip(copies, step, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()
        for p, g in zip(copies, step, strict=True):
            assert (p.grad is None) == (g is None)
            assert g is None or torch.equal(p.grad, g), "p.grad was written"
    return copies, optimizer


def paper_loop(
    params: Sequence[Tensor],
    grads: Sequence[Sequence[Tensor]],
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> list[Tensor]:
    """docs/algorithm.md, written out once more in float64: what every backend must arrive at."""
    ws = [p.detach().double().clone() for p in params]
    bufs: list[Tensor | None] = [None] * len(ws)
    n_last = [w.shape[0] for w in ws if w.dim() >= 2 and w.numel()][-1]
    for step in grads:
        for i, g in enumerate(step):
            w, g = ws[i], g.double() * (-1 if maximize else 1)
            if w.dim() >= 2:
                s = w.pow(2).sum() / n_last
            else:
                s = w.numel() / n_last if w.dim() == 1 else 1.0
            d = s * (g + weight_decay * w)
            if momentum:
                buf = bufs[i]
                buf = d if buf is None else momentum * buf + (1 - dampening) * d
                bufs[i] = buf
                d = d + momentum * buf if nesterov else buf
            ws[i] = w - float(lr) * d
    return ws


def scale_amended(**options: Any) -> Callable[[list[nn.Parameter]], lh.ScaleAmendedSGD]:
    """A factory for :func:`run`."""
    return lambda params: lh.ScaleAmendedSGD(params, **options)
