"""All eigenvalues of H: from the structure of a closed form, or from the dense matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lhkernels.hessian.closed_forms import SpectralBlock
from lhkernels.hessian.lanczos import check_symmetric
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur

AUTO_DIM = 2000  # method="auto" diagonalises a dense matrix up to this dimension
AUTO_WORK = 2e12  # and the blocks of a closed form up to so many operations
MEMORY = 4 << 30  # bytes; the largest workspace without a memory_limit
_CHUNK = 1 << 28  # bytes of float64 matrices that are diagonalised together

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Eigenvalues:
    """The spectrum of H with its rounding errors.

    Attributes:
        values: (N,), float64, CPU, ascending; zeros are exactly 0.
        weights: (N,), multiplicity / dim, sum 1.
        errors: (N,), bounds of the rounding error of each value.
        zero_tolerance: the largest ``|value|`` that was taken for zero.
        law: the Marchenko-Pastur law that all blocks share, or None.
    """

    values: Tensor
    weights: Tensor
    errors: Tensor
    zero_tolerance: float
    law: MarchenkoPastur | None = None


@dataclass
class _Part:
    """Eigenvalues (or singular values) of one batch of matrices."""

    values: Tensor
    multiplicity: int
    is_factor: bool
    relative: float  # the rounding of a value, relative to the largest


def of_dense(matrix: Tensor, zero_tolerance: float | None = None) -> Eigenvalues:
    """Eigenvalues of a dense symmetric matrix (dim, dim), in float64.

    Zero is ``|eigenvalue| <= 4 sqrt(dim) * eps(dtype) * largest``, or ``<= zero_tolerance``:
    independent roundings of the entries make a matrix of norm ``2 sqrt(dim) * eps * entry``.
    """
    matrix = _finite(matrix)
    values = torch.linalg.eigvalsh((matrix.double() + matrix.mT.double()) / 2.0).cpu()
    dim = matrix.shape[0]
    part = _Part(values, 1, False, relative_rounding(dim, matrix.dtype))
    return _assemble([part], 0, dim, zero_tolerance, None)


def dense_matrix(
    H: Any, dim: int, rows: Callable[[Tensor], Tensor], advance: Advance | None = None
) -> Tensor:
    """H as a (dim, dim) tensor: itself, its ``dense()``, or its products with all unit vectors.

    Raises:
        ValueError: it is not symmetric.
    """
    if isinstance(H, Tensor):
        return H.detach()  # checked before
    if callable(getattr(H, "dense", None)):
        matrix = H.dense().detach()
    else:
        step = max(1, _CHUNK // (8 * dim))
        unit = torch.eye(dim, dtype=H.dtype, device=H.device)
        matrix = torch.empty_like(unit)
        for first in range(0, dim, step):
            matrix[first : first + step] = rows(unit[first : first + step])
            if advance is not None:
                advance(min(step, dim - first))
    check_symmetric(matrix)
    return matrix


def of_blocks(
    blocks: Iterable[SpectralBlock],
    dim: int,
    dtype: torch.dtype,
    *,
    zero_tolerance: float | None = None,
    work_limit: float = math.inf,
    memory_limit: int | None = None,
    advance: Advance | None = None,
) -> Eigenvalues | None:
    """Eigenvalues of a block-diagonal H from its blocks, in float64 and in batches.

    Of factors (r, d) the singular values are taken, and zero is decided on these as
    ``torch.linalg.matrix_rank`` does: ``sigma <= max(r, d) * eps * largest sigma``. For symmetric
    (d, d) blocks it is ``|eigenvalue| <= 4 sqrt(d) * eps * largest``. "Largest" is
    that of the whole of H, eps that of ``dtype``. With ``zero_tolerance``, it is ``|eigenvalue| <=
    zero_tolerance`` for both.

    Args:
        dtype: that of H, which its numbers are good to, even where blocks are float64.
        work_limit: None is returned as soon as more operations than this can be foreseen.
        advance: called with the number of rows of H that are done.

    Raises:
        MemoryError: a single matrix needs more than ``memory_limit`` (default: 4 GiB).
        ValueError: a matrix that is not finite.
        RuntimeError: the blocks do not add up to ``dim``.
    """
    parts: list[_Part] = []
    zeros = covered = 0
    work = 0.0
    laws = []
    for block in blocks:
        *batch, r, d = block.matrix.shape
        count = math.prod(batch)
        covers = count * d * block.multiplicity
        cost = count * _operations(block, r, d)
        if work + cost * max(1.0, (dim - covered) / max(covers, 1)) > work_limit:
            return None
        check_memory(_workspace(block, r, d), memory_limit, f"a block of {r} x {d}")
        work, covered = work + cost, covered + covers
        laws.append(block.law)
        step = _steps_together(r, d)
        coarse = max(dtype, block.matrix.dtype, key=lambda one: torch.finfo(one).eps)
        # 1 x 1 matrices are the known eigenvalues of something that has as many.
        relative = relative_rounding(d if d > 1 else count, coarse)
        if block.is_factor:
            relative = max(r, d) * torch.finfo(coarse).eps
        matrices = block.matrix.reshape(-1, r, d)
        for first in range(0, count, step):
            chunk = matrices[first : first + step]
            values = _decompose(chunk, block.is_factor)
            parts.append(_Part(values, block.multiplicity, block.is_factor, relative))
            if advance is not None:
                advance(chunk.shape[0] * d * block.multiplicity)
        if block.is_factor:
            zeros += count * (d - min(r, d)) * block.multiplicity
    if covered != dim:
        raise RuntimeError(f"the closed form's blocks cover {covered} of {dim} dimensions")
    law = laws[0] if all(one == laws[0] for one in laws) else None
    return _assemble(parts, zeros, dim, zero_tolerance, law)


def check_memory(needed: int, limit: int | None, what: str) -> None:
    """Raise MemoryError where ``needed`` bytes are more than the limit."""
    allowed = MEMORY if limit is None else limit
    if needed > allowed:
        raise MemoryError(
            f"method='exact': {what} needs {needed:,} bytes ({needed / 2**30:.1f} GiB), more than "
            f"the limit of {allowed:,}; use method='slq' (or 'lanczos' for the extreme "
            "eigenvalues), or raise memory_limit"
        )


def relative_rounding(dim: int, dtype: torch.dtype) -> float:
    """``4 sqrt(dim) * eps``: how far rounding moves an eigenvalue, relative to the largest."""
    return 4.0 * math.sqrt(dim) * torch.finfo(dtype).eps


def dense_workspace(dim: int) -> int:
    """Bytes to diagonalise a dense (dim, dim) matrix: itself, a copy, and LAPACK's."""
    return 3 * 8 * dim * dim


def _decompose(matrices: Tensor, is_factor: bool) -> Tensor:
    wide = torch.complex128 if matrices.is_complex() else torch.float64
    matrices = _finite(matrices).to(wide)
    if is_factor:
        return torch.linalg.svdvals(matrices).cpu().reshape(-1)
    return torch.linalg.eigvalsh(matrices).cpu().reshape(-1)


def _operations(block: SpectralBlock, r: int, d: int) -> float:
    complex_factor = 4.0 if block.matrix.is_complex() else 1.0
    one = 4.0 * min(r, d) ** 2 * max(r, d) if block.is_factor else 4.0 / 3.0 * d**3
    return complex_factor * one


def _workspace(block: SpectralBlock, r: int, d: int) -> int:
    return 3 * (16 if block.matrix.is_complex() else 8) * r * d


def _steps_together(r: int, d: int) -> int:
    return max(1, _CHUNK // max(1, 16 * r * d))


def _assemble(
    parts: list[_Part],
    zeros: int,
    dim: int,
    zero_tolerance: float | None,
    law: MarchenkoPastur | None,
) -> Eigenvalues:
    """Square the singular values, set the zeros, weigh, sort."""
    largest = max(
        (
            float(p.values.square().max() if p.is_factor else p.values.abs().max())
            for p in parts
            if p.values.numel()
        ),
        default=0.0,
    )
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    used = 0.0 if zero_tolerance is None else zero_tolerance
    for part in parts:
        error = part.relative * (math.sqrt(largest) if part.is_factor else largest)
        values, errors = part.values, torch.full_like(part.values, error)
        tolerance = error
        if part.is_factor:  # (sigma +- error)^2
            values, errors = values.square(), error * (2.0 * values + error)
            tolerance = error**2
        if zero_tolerance is None:
            used = max(used, tolerance)
        else:
            tolerance = zero_tolerance
        values = torch.where(values.abs() <= tolerance, torch.zeros_like(values), values)
        weights = torch.full_like(values, part.multiplicity / dim)
        columns.append((values, weights, errors))
    if zeros:
        one = torch.ones(1, dtype=torch.float64)
        columns.append((0.0 * one, zeros / dim * one, 0.0 * one))
    values, weights, errors = (torch.cat(column) for column in zip(*columns, strict=True))
    order = values.argsort(stable=True)
    return Eigenvalues(values[order], weights[order], errors[order], used, law)


def _finite(matrices: Tensor) -> Tensor:
    if not matrices.isfinite().all():
        raise ValueError(
            "H is not finite; look for NaN, inf or overflow in the block's weights and inputs"
        )
    return matrices
