"""The scales ``s_b`` as numbers to read, and the constant of ``scale_reference="initial"``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lhkernels.plan import Block
from lhkernels.reference import norm_dtype
from lhkernels.step.global_norms import whole_sq_norms
from lhkernels.step.sets import Work


def block_scales(
    params: Sequence[Tensor],
    blocks: Sequence[Block | None],
    constant: float | None,
    find_constant: bool,
) -> list[Tensor]:
    """``s_b`` of each parameter as it is now, 0-dim, float32 or better; the host does not wait.

    Args:
        params: on any devices.
        blocks: their places in the plan; None for plain SGD, whose scale is 1.
        constant: divides the scales of all blocks, not of plain parameters.
        find_constant: where ``constant`` is None, take the scales' own geometric mean.
    """
    weights = [p for p, b in zip(params, blocks, strict=True) if b is not None and b.uses_norm]
    norms = iter(whole_sq_norms(weights))
    scales: list[Tensor] = []
    for param, block in zip(params, blocks):
        scale = torch.ones((), dtype=norm_dtype(param.dtype), device=param.device)
        if block is not None:
            scale = block.coefficient * (next(norms) if block.uses_norm else scale)
        scales.append(scale)
    divisor: float | Tensor | None = constant
    if constant is None and find_constant:
        chosen = [i for i, block in enumerate(blocks) if block is not None and block.uses_norm]
        if chosen:
            numels = [params[i].numel() for i in chosen]
            divisor = geometric_mean([scales[i] for i in chosen], numels)
    if divisor is None:
        return scales
    return [
        scale if block is None or block.kind == "plain" else scale / _like(divisor, scale)
        for scale, block in zip(scales, blocks)
    ]


def geometric_mean_of_scales(work: Sequence[Work]) -> float | None:
    """Element-weighted geometric mean of all blocks' scales; None where no block has one."""
    scales: list[Tensor] = []
    numels: list[int] = []
    for w in work:
        own = w.scales()
        if own is None or w.set.blocks is None or not w.set.has_values:
            continue
        for param, block, scale in zip(w.set.wholes, w.set.blocks, own.unbind()):
            if block.uses_norm:
                scales.append(scale)
                numels.append(param.numel())
    mean = float(geometric_mean(scales, numels)) if scales else math.nan
    return None if math.isnan(mean) else mean


def geometric_mean(values: Sequence[Tensor], numels: Sequence[int]) -> Tensor:
    """Element-weighted geometric mean of those of 0-dim tensors that are finite and above 0, NaN if
    none is: a 0-dim float64 CPU tensor or, of tensors on a device, one there (the host does not
    wait)."""
    device = values[0].device
    wide = [value.detach().to(device, torch.float64, non_blocking=True) for value in values]
    each = torch.stack(wide)
    there = each.isfinite() & (each > 0)  # others are refused when they move
    weights = torch.tensor(numels, dtype=torch.float64, device=device) * there
    return ((weights * each.where(there, 1.0).log()).sum() / weights.sum()).exp()


def _like(value: float | Tensor, other: Tensor) -> float | Tensor:
    return value.to(other.device, other.dtype) if isinstance(value, Tensor) else value
