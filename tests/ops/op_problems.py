"""Problems for the C++ operators, and the check of a step against the reference in float64.

Tolerances of one step, stated once:

* float64 arithmetic: 1e-12 of the size of the terms that are added up;
* float32 arithmetic: :data:`FLOAT32_ROUNDINGS` half units in the last place of that size;
* what is stored in a narrower type: half a unit in the last place of the float64 result on top.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lhkernels import _extension, reference
from lhkernels.hyperparameters import Hyperparameters
from lhkernels.step import cpp as ops

if not _extension.available():
    pytest.skip(str(_extension.reason()), allow_module_level=True)

FLOAT32_ROUNDINGS = 5
LOW_PRECISION = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *LOW_PRECISION)
SIZES = (0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 65, 2047, 2048, 2049, 4096, 65535, 65536, 65537)
OPTIONS = {
    "sgd": Hyperparameters(lr=0.1),
    "decay": Hyperparameters(lr=0.1, weight_decay=0.05),
    "momentum": Hyperparameters(lr=0.1, momentum=0.9),
    "momentum-decay": Hyperparameters(lr=0.03, momentum=0.9, weight_decay=0.05),
    "dampening": Hyperparameters(lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.01),
    "nesterov": Hyperparameters(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05),
    "maximize": Hyperparameters(lr=0.1, momentum=0.9, weight_decay=0.05, maximize=True),
}
ALL = OPTIONS["momentum-decay"]


@dataclass
class Problem:
    """What one call works on; ``None`` for the scales is plain SGD."""

    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[Tensor]
    sq_norms: Tensor | None = None
    coefficients: Tensor | None = None
    scales: Tensor | None = None

    def copy(self) -> Problem:
        return Problem(
            [p.clone() for p in self.params],
            [g.clone() for g in self.grads],
            [b.clone() for b in self.buffers],
            None if self.sq_norms is None else self.sq_norms.clone(),
            self.coefficients,
            self.scales,
        )

    def step(self, h: Hyperparameters, **extra: object) -> None:
        ops.sgd_step_(
            self.params,
            self.grads,
            self.buffers if h.momentum else [],
            h,
            sq_norms=self.sq_norms,
            coefficients=self.coefficients,
            scales=self.scales,
            **extra,
        )

    def all_scales(self) -> list[float]:
        if self.scales is not None:
            return self.scales.tolist()
        if self.coefficients is not None:
            return (self.coefficients * self.sq_norms).tolist()
        return [1.0] * len(self.params)

    def tensors(self) -> list[Tensor]:
        norms = [] if self.sq_norms is None else [self.sq_norms]
        return [*self.params, *self.buffers, *norms]

    def digest(self) -> str:
        """Of every bit."""
        data = b"".join(bytes(t.contiguous().view(torch.uint8).numpy()) for t in self.tensors())
        return hashlib.sha256(data).hexdigest()


def like(param: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Normal numbers in the parameter's layout."""
    return torch.empty_like(param, dtype=dtype or param.dtype).copy_(torch.randn(param.shape))


def make_problem(
    params: list[Tensor],
    scales: str = "none",
    grad_dtype: torch.dtype | None = None,
    buffer_dtype: torch.dtype | None = None,
) -> Problem:
    """Normal gradients and buffers; ``scales`` is "none", "amend" or "scales"."""
    problem = Problem(
        params,
        [like(p, grad_dtype) for p in params],
        [like(p, buffer_dtype) for p in params],
    )
    if scales == "amend":
        problem.sq_norms = ops.sq_norms(params)
        wanted = 0.5 + torch.rand(len(params), dtype=torch.float64)
        problem.coefficients = wanted / problem.sq_norms.clamp_min(1e-6)
    elif scales == "scales":
        problem.scales = 0.5 + torch.rand(len(params), dtype=torch.float64)
    return problem


def vectors(dtype: torch.dtype, sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    return [torch.randn(size).to(dtype) for size in sizes]


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring numbers of ``dtype`` around x."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp_min(info.tiny))[1] - 1
    return torch.ldexp(torch.full_like(x, info.eps), exponent)


def allowance(stored: Tensor, exact: Tensor, size: Tensor, arithmetic: torch.dtype) -> Tensor:
    """The error that the tolerances above allow."""
    float32_bound = FLOAT32_ROUNDINGS * torch.finfo(torch.float32).eps / 2
    bound = (1e-12 if arithmetic == torch.float64 else float32_bound) * size
    wider = torch.promote_types(stored.dtype, arithmetic) == arithmetic != stored.dtype
    return bound + ulp(exact, stored.dtype) / 2 if wider else bound


def check_step(problem: Problem, h: Hyperparameters, divisor: float = 1.0, **extra) -> None:
    """One step of the problem against the reference in float64."""
    before, scales = problem.copy(), problem.all_scales()
    problem.step(h, **extra)
    arithmetic = torch.promote_types(problem.params[0].dtype, torch.float32)
    for i, scale in enumerate(scales):
        s = torch.tensor(scale, dtype=torch.float64)
        w, g, buf = (list_[i].double() for list_ in (before.params, before.grads, before.buffers))
        g = g / divisor
        exact_w, exact_buf = w.clone(), buf.clone()
        reference.update(exact_w, g, exact_buf, s, h)
        d_size = s * (g.abs() + h.weight_decay * w.abs())
        buf_size = h.momentum * buf.abs() + (1 - h.dampening) * d_size
        w_size = w.abs() + h.lr * ((d_size + buf_size) if h.momentum else d_size)
        stored = [(problem.params[i], exact_w, w_size)]
        if h.momentum:
            stored.append((problem.buffers[i], exact_buf, buf_size))
        for got, exact, size in stored:
            excess = (got.double() - exact).abs() - allowance(got, exact, size, arithmetic)
            assert not (excess > 0).any(), f"tensor {i}, {got.dtype}: {excess.max()} too far"
        assert torch.equal(problem.grads[i], before.grads[i])
    if problem.sq_norms is not None:
        assert torch.equal(problem.sq_norms, ops.sq_norms(problem.params))


def several_steps(dtype: torch.dtype, seed: int | None = None) -> Problem:
    """A problem of several chunks and tensors, three steps on, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        problem = make_problem(vectors(dtype, (3, 65537, 1000, 200_000)), "amend")
    for step in range(3):
        problem.step(ALL, seed=None if seed is None else seed + step)
    return problem
