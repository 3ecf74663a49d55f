"""All eigenvalues of H: from the structure of a closed form, or from the dense matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lhkernels.hessian.distribution import Spectrum
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur
from lhkernels.hessian.symmetric import SpectralBlock, SymmetricOperator, check_symmetric

AUTO_DIM = 2000  # method="auto" diagonalises a dense matrix up to this dimension
AUTO_WORK = 2e12  # and the blocks of a closed form up to so many operations
MEMORY = 4 << 30  # bytes; the largest workspace without a memory_limit
_CHUNK = 1 << 28  # bytes of float64 matrices that are diagonalised together


@dataclass
class _Part:
    """Eigenvalues (or singular values) of one batch of matrices."""

    values: Tensor
    multiplicity: int
    is_factor: bool
    relative: float  # the rounding of a value, relative to the largest


def of_dense(
    H: SymmetricOperator, zero_tolerance: float | None, memory_limit: int | None
) -> Spectrum:
    """From H as a dense matrix: a single block.

    Zero is ``|eigenvalue| <= 4 sqrt(dim) * eps(dtype) * largest``, or ``<= zero_tolerance``:
    independent roundings of the entries make a matrix of norm ``2 sqrt(dim) * eps * entry``.

    Raises:
        MemoryError: it needs more than ``memory_limit`` (default: 4 GiB).
        ValueError: it is not symmetric, or not finite.
    """
    needed = dense_workspace(H.dim)
    _check_memory(needed, memory_limit, f"a dense {H.dim} x {H.dim} matrix")
    matrix = H.dense(max_bytes=needed)
    check_symmetric(matrix)
    symmetric = (matrix.double() + matrix.mT.double()) / 2.0
    found = of_blocks(
        [SpectralBlock(symmetric, 1, is_factor=False)],
        H.dim,
        H.dtype,
        zero_tolerance=zero_tolerance,
        memory_limit=memory_limit,
    )
    assert found is not None  # there is no work_limit
    return found


def of_blocks(
    blocks: Iterable[SpectralBlock],
    dim: int,
    dtype: torch.dtype,
    *,
    zero_tolerance: float | None = None,
    work_limit: float = math.inf,
    memory_limit: int | None = None,
) -> Spectrum | None:
    """From the blocks that H falls into, in float64 and in batches.

    Of factors (r, d) the singular values are taken, and zero is decided on these as
    ``torch.linalg.matrix_rank`` does: ``sigma <= max(r, d) * eps * largest sigma``. For symmetric
    (d, d) blocks it is ``|eigenvalue| <= 4 sqrt(d) * eps * largest``. "Largest" is
    that of the whole of H, eps that of ``dtype``. With ``zero_tolerance``, it is ``|eigenvalue| <=
    zero_tolerance`` for both.

    Args:
        dtype: that of H, which its numbers are good to, even where blocks are float64.
        work_limit: None is returned as soon as more operations than this can be foreseen.

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
        r, d = block.matrix.shape[-2:]
        matrices = block.matrix.reshape(-1, r, d)
        cost = len(matrices) * _operations(block, r, d)
        if work + cost * max(1.0, (dim - covered) / max(block.dim, 1)) > work_limit:
            return None
        _check_memory(_workspace(block, r, d), memory_limit, f"a block of {r} x {d}")
        work, covered = work + cost, covered + block.dim
        laws.append(block.law)
        coarse = max(dtype, block.matrix.dtype, key=lambda one: torch.finfo(one).eps)
        # 1 x 1 matrices are the known eigenvalues of something that has as many.
        relative = relative_rounding(d if d > 1 else len(matrices), coarse)
        if block.is_factor:
            relative = max(r, d) * torch.finfo(coarse).eps
            zeros += len(matrices) * (d - min(r, d)) * block.multiplicity
        for chunk in matrices.split(max(1, _CHUNK // max(1, 16 * r * d))):
            values = _decompose(chunk, block.is_factor)
            parts.append(_Part(values, block.multiplicity, block.is_factor, relative))
    if covered != dim:
        raise RuntimeError(f"the closed form's blocks cover {covered} of {dim} dimensions")
    law = laws[0] if all(one == laws[0] for one in laws) else None
    return _assemble(parts, zeros, dim, zero_tolerance, law)


def relative_rounding(dim: int, dtype: torch.dtype) -> float:
    """``4 sqrt(dim) * eps``: how far rounding moves an eigenvalue, relative to the largest."""
    return 4.0 * math.sqrt(dim) * torch.finfo(dtype).eps


def dense_workspace(dim: int) -> int:
    """Bytes to diagonalise a dense (dim, dim) matrix: itself, a copy, and LAPACK's."""
    return 3 * 8 * dim * dim


def _check_memory(needed: int, limit: int | None, what: str) -> None:
    """Raise MemoryError where ``needed`` bytes are more than the limit."""
    allowed = MEMORY if limit is None else limit
    if needed > allowed:
        raise MemoryError(
            f"method='exact': {what} needs {needed:,} bytes ({needed / 2**30:.1f} GiB), more than "
            f"the limit of {allowed:,}; use method='slq' (or 'lanczos' for the extreme "
            "eigenvalues), or raise memory_limit"
        )


def _decompose(matrices: Tensor, is_factor: bool) -> Tensor:
    if not matrices.isfinite().all():
        raise ValueError(
            "H is not finite; look for NaN, inf or overflow in the block's weights and inputs"
        )
    matrices = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    decompose = torch.linalg.svdvals if is_factor else torch.linalg.eigvalsh
    return decompose(matrices).cpu().reshape(-1)


def _operations(block: SpectralBlock, r: int, d: int) -> float:
    complex_factor = 4.0 if block.matrix.is_complex() else 1.0
    one = 4.0 * min(r, d) ** 2 * max(r, d) if block.is_factor else 4.0 / 3.0 * d**3
    return complex_factor * one


def _workspace(block: SpectralBlock, r: int, d: int) -> int:
    return 3 * (16 if block.matrix.is_complex() else 8) * r * d


def _assemble(
    parts: list[_Part],
    zeros: int,
    dim: int,
    zero_tolerance: float | None,
    law: MarchenkoPastur | None,
) -> Spectrum:
    """Square the singular values, set the zeros, weigh, sort."""
    found = [p.values.square() if p.is_factor else p.values for p in parts]
    largest = max((float(v.abs().max()) for v in found if v.numel()), default=0.0)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    used = 0.0 if zero_tolerance is None else zero_tolerance
    for part, values in zip(parts, found, strict=True):
        error = part.relative * (math.sqrt(largest) if part.is_factor else largest)
        errors, tolerance = torch.full_like(values, error), error
        if part.is_factor:  # (sigma +- error)^2
            errors, tolerance = error * (2.0 * part.values + error), error**2
        if zero_tolerance is None:
            used = max(used, tolerance)
        else:
            tolerance = zero_tolerance
        values = torch.where(values.abs() <= tolerance, torch.zeros_like(values), values)
        columns.append((values, torch.full_like(values, part.multiplicity / dim), errors))
    if zeros:
        one = torch.ones(1, dtype=torch.float64)
        columns.append((0.0 * one, zeros / dim * one, 0.0 * one))
    values, weights, errors = (torch.cat(column) for column in zip(*columns, strict=True))
    order = values.argsort(stable=True)
    errors = errors[order]
    return Spectrum(
        values[order],
        weights[order],
        errors,
        method="exact",
        dim=dim,
        zero_tolerance=used,
        rounding=float(errors.max()),
        law=law,
    )
