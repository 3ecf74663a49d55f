"""The C++ operators as typed functions, and what they do to fake tensors (``torch.compile``).

The schemas are in ``csrc/ops.cpp``. Ask :func:`lhkernels._extension.available` first: that loads
the operators and registers the fake implementations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# lhkernels.hessian.patches.Geometry: kernel, stride, padding, dilation (empty for a linear layer)
# and groups.
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int], int]


def sq_norms(params: Sequence[Tensor]) -> Tensor:
    """``||W_b||_F^2`` of dense CPU tensors of one dtype, (B,) float64; B >= 1.

    The sum has a fixed order: the same bits for any number of threads, and the same that
    :func:`sgd_step_` leaves for the weights it wrote.
    """
    return torch.ops.lhkernels.sq_norms.default(params)


def samples(params: Sequence[Tensor]) -> Tensor:
    """A hash of a few cache lines of each tensor, (B,) int64.

    Of 1 KiB of every 65,536 elements, and of 4 KiB of what is left, or of a smaller tensor. By it
    :func:`sgd_step_`, which leaves the same for the weights it wrote, knows that somebody else has
    written them since. It sees whole tensors of up to 4 KiB; in larger ones it misses writes that
    leave those lines as they were.
    """
    return torch.ops.lhkernels.samples.default(params)


def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    sq_norms: Tensor | None = None,
    coefficients: Tensor | None = None,
    scales: Tensor | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: int | None = None,
    streams: Tensor | None = None,
    uses_norm: Tensor | None = None,
    samples: Tensor | None = None,
    unseen: Tensor | None = None,
) -> None:
    r"""One step of B >= 1 parameters, in place; gradients are never written.

    .. math::
        d &= s_b (\pm g / \text{grad\_scale} + \text{weight\_decay}\, W) \\
        buf &\leftarrow \text{momentum}\, buf + (1 - \text{dampening})\, d \\
        W &\leftarrow W - lr\, (d + \text{momentum}\, buf \text{ if nesterov, else } buf)

    in float32 (float64 for float64 parameters), each stored value rounded once.

    Args:
        params: dense CPU tensors of one dtype, float32, float64, bfloat16 or float16, of which no
            two share memory.
        grads: of the parameters' sizes and strides, each of any of those dtypes.
        momentum_buffers: the same; empty where momentum is 0. Zeros before the first step.
        sq_norms: (B,) float64, ``||W_b||_F^2`` before the step; on return that of the new weights.
        coefficients: (B,), ``s_b = coefficients[b] * sq_norms[b]``.
        scales: (B,), ``s_b`` itself; without either, ``s_b = 1``: plain SGD.
        lr, momentum, dampening, weight_decay, nesterov, maximize: see :class:`torch.optim.SGD`.
        grad_scale: 1 element; gradients are divided by it.
        found_inf: 1 element; anything but 0 leaves everything as it is.
        seed: for stochastic rounding of bfloat16 and float16 parameters; None rounds to nearest.
        streams: (B,) int64, the tensors' numbers in the random draws; default: their positions.
        uses_norm: (B,); only where it is not 0 is ``sq_norms`` written.
        samples: (B,) int64, :func:`samples` of the weights that ``sq_norms`` are of; on return
            those of the new weights. A norm whose weight has another sample is computed anew.
        unseen: 1 int64; set to 1 + the position of the first weight that had another sample.
    """
    torch.ops.lhkernels.sgd_step_.default(
        params,
        grads,
        momentum_buffers,
        sq_norms,
        coefficients,
        scales,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
        grad_scale=grad_scale,
        found_inf=found_inf,
        seed=seed,
        streams=streams,
        uses_norm=uses_norm,
        samples=samples,
        unseen=unseen,
    )


def patch_gram(x: Tensor, geometry: Geometry, mean: Tensor | None, memory_limit: int) -> Tensor:
    """``lhkernels.hessian.patches.patch_gram`` in C++, on any device."""
    return torch.ops.lhkernels.patch_gram.default(x, *geometry, mean, memory_limit)


def gram_hvp(
    gram: Tensor, rows: Tensor, scale: Tensor | None, direction: Tensor | None, memory_limit: int
) -> Tensor:
    """``lhkernels.hessian.patches.gram_hvp`` in C++, on any device."""
    return torch.ops.lhkernels.gram_hvp.default(gram, rows, scale, direction, memory_limit)


def patch_hvp(
    x: Tensor,
    geometry: Geometry,
    mean: Tensor | None,
    rows: Tensor,
    scale: Tensor | None,
    direction: Tensor | None,
    memory_limit: int,
) -> Tensor:
    """``lhkernels.hessian.patches.patch_hvp`` in C++, on any device."""
    return torch.ops.lhkernels.patch_hvp.default(
        x, *geometry, mean, rows, scale, direction, memory_limit
    )


def input_hvp(
    rows: Tensor,
    weight: Tensor,
    geometry: Geometry,
    scale: Tensor | None,
    direction: Tensor | None,
    memory_limit: int,
) -> Tensor:
    """``lhkernels.hessian.patches.input_hvp`` in C++, on any device."""
    return torch.ops.lhkernels.input_hvp.default(
        rows, weight, *geometry, scale, direction, memory_limit
    )


def register_fakes() -> None:
    """Tell torch the shape of what the loaded operators return."""
    torch.library.register_fake("lhkernels::sq_norms", _fake_sq_norms)
    torch.library.register_fake("lhkernels::samples", _fake_samples)
    torch.library.register_fake("lhkernels::sgd_step_", _fake_sgd_step_)
    torch.library.register_fake("lhkernels::patch_gram", _fake_patch_gram)
    torch.library.register_fake("lhkernels::gram_hvp", _fake_gram_hvp)
    torch.library.register_fake("lhkernels::patch_hvp", _fake_patch_hvp)
    torch.library.register_fake("lhkernels::input_hvp", _fake_input_hvp)


def _fake_sq_norms(params: Sequence[Tensor]) -> Tensor:
    return torch.empty(len(params), dtype=torch.float64)


def _fake_samples(params: Sequence[Tensor]) -> Tensor:
    return torch.empty(len(params), dtype=torch.int64)


def _fake_sgd_step_(*args: object, **options: object) -> None:
    return None


def _fake_patch_gram(x: Tensor, kernel: Sequence[int], *rest: Any) -> Tensor:
    groups = rest[3]
    size = x.shape[1] // groups * math.prod(kernel)
    return x.new_empty(groups, size, size)


def _fake_gram_hvp(gram: Tensor, rows: Tensor, *rest: object) -> Tensor:
    return rows.new_empty(rows.shape)


def _fake_patch_hvp(x: Tensor, *rest: Any) -> Tensor:
    rows = rest[6]
    return rows.new_empty(rows.shape)


def _fake_input_hvp(rows: Tensor, *rest: object) -> Tensor:
    return rows.new_empty(rows.shape)
