"""A step of some tensors by the Triton kernel, and what it should have done, for these tests.

Interpreted on the CPU, or compiled on a GPU under ``TRITON_INTERPRET=0``.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from lhkernels import reference
from lhkernels.hyperparameters import NAMES, Hyperparameters
from lhkernels.step import triton_kernel as kernel
from lhkernels.step.triton_tables import Tables

INTERPRETED = kernel.INTERPRETED.value
DEVICE = "cpu" if INTERPRETED else "cuda"
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        INTERPRETED or not torch.cuda.is_available(),
        reason="needs a CUDA device, and TRITON_INTERPRET=0",
    ),
]
here = [] if INTERPRETED else on_gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
EPS = torch.finfo(F32).eps
# float32 results, in units of EPS times the sum of the absolute values of the terms
TOLERANCE = 6
SMALL = {"tile": 64, "min_chunk": 128}  # so that a few hundred elements cross borders

ALL = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}


def make(shapes, dtype=F32, **options) -> list[Tensor]:
    return [torch.randn(shape, **options).to(dtype).to(DEVICE) for shape in shapes]


def with_tensors(**numbers) -> SimpleNamespace:
    """Hyperparameters of which some are tensors where a kernel reads them, on a device."""
    defaults = {name: getattr(Hyperparameters(), name) for name in NAMES}
    return SimpleNamespace(**{**defaults, **numbers})


class Step:
    """Parameters, gradients and buffers, a step of theirs, and what it should have done."""

    def __init__(self, params, grads, *, momentum_dtype=None, amend=True, **options) -> None:
        self.params, self.grads = params, grads
        self.h = Hyperparameters(**{"lr": 0.1, **options})
        self.buffers = None
        if self.h.momentum:
            self.buffers = [torch.zeros_like(p, dtype=momentum_dtype or p.dtype) for p in params]
        self.uses_norm = [p.ndim != 1 for p in params] if amend else None
        self.coefficients = torch.linspace(0.01, 0.1, len(params), device=DEVICE) if amend else None

    def tables(self, **options) -> Tables:
        tables = Tables(
            self.params, uses_norm=self.uses_norm, coefficients=self.coefficients,
            **{**SMALL, **options},
        )  # fmt: skip
        if self.uses_norm is not None:
            kernel.refresh_norms(tables, range(len(self.params)))
        return tables

    def run(self, tables: Tables, **given) -> None:
        tables.update(self.params, self.grads, self.buffers)
        kernel.step(tables, self.h, **given)

    def expected(self, scales=None, grad_scale=1.0):
        """Per tensor: exact parameter and buffer, and the sum of their terms' absolute values."""
        results = []
        for b, (p, g) in enumerate(zip(self.params, self.grads, strict=True)):
            w, g = p.double(), g.double() / grad_scale
            m = self.buffers[b].double() if self.buffers else None
            s = self.scale(b) if scales is None else scales[b].double()
            terms = (g.abs() + float(self.h.weight_decay) * w.abs()) * (1 if s is None else s.abs())
            if m is not None:
                terms = terms * (1 + abs(self.h.dampening)) + m.abs()
            size = w.abs() + float(self.h.lr) * terms * (1 + self.h.nesterov)
            m = reference.update(w, g, m, s, self.h)
            results.append((w, m, size, terms))
        return results

    def scale(self, b):
        if self.coefficients is None:
            return None
        norm = self.params[b].double().square().sum() if self.uses_norm[b] else 1.0
        return self.coefficients[b].double() * norm

    def check(self, expected) -> None:
        for b, (w, m, size, terms) in enumerate(expected):
            assert_rounded(self.params[b], w, size)
            if self.buffers:
                assert_rounded(self.buffers[b], m, terms)


def assert_rounded(got: Tensor, exact: Tensor, size: Tensor) -> None:
    """float32: a few ulp; less: half an ulp of the exact result, and the error of float32."""
    slack = TOLERANCE * EPS * size
    if got.dtype != F32:
        slack = slack + half_ulp(exact, got.dtype)
    error = (got.double() - exact).abs()
    assert (error <= slack).all(), f"{(error / slack).max():.3g} times too far"


def half_ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    return 2.0 ** x.abs().clamp_min(info.tiny).log2().floor() * info.eps / 2


def clones(*lists):
    return [[t.clone() for t in tensors or ()] for tensors in lists]


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
