"""The C++ operators of batched products as typed functions, and what they do to fake tensors.

Those of the step are in lhkernels/step/cpp.py. Schemas: ``csrc/ops.cpp``. Ask
:func:`lhkernels._extension.available` first, which loads the operators.
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
    torch.library.register_fake("lhkernels::patch_gram", _fake_patch_gram)
    torch.library.register_fake("lhkernels::gram_hvp", _fake_gram_hvp)
    torch.library.register_fake("lhkernels::patch_hvp", _fake_patch_hvp)
    torch.library.register_fake("lhkernels::input_hvp", _fake_input_hvp)


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
