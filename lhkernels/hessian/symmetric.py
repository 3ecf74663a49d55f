"""A symmetric operator: what traces and spectra ask of an H, and what an H may know of itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lhkernels.hessian.marchenko_pastur import MarchenkoPastur

MAX_DENSE_BYTES = 8 << 30
IDENTITY_BYTES = 64 << 20  # unit vectors at a time, in dense()


@dataclass(frozen=True)
class SpectralBlock:
    """Matrices that H, in some orthonormal basis, has on its diagonal.

    Attributes:
        matrix: (..., d, d) symmetric, or factors B (..., r, d), complex ones too, all float64.
        multiplicity: how often the eigenvalues of each matrix of the batch occur in H.
        is_factor: the matrices are B^H B.
        law: what the eigenvalues would follow, were the weight Gaussian; None where that is not
            known.
    """

    matrix: Tensor
    multiplicity: int
    is_factor: bool
    law: MarchenkoPastur | None = None

    @property
    def dim(self) -> int:
        """The rows of H that these are."""
        return math.prod(self.matrix.shape[:-2]) * self.matrix.shape[-1] * self.multiplicity


class SymmetricOperator(ABC):
    """A symmetric H (dim, dim). Its products are enough; some know more of themselves.

    Attributes:
        dim: the rows of H.
        dtype: of H and of the vectors that it multiplies.
        device: the same.
    """

    dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> torch.Size:
        """(dim, dim)."""
        return torch.Size((self.dim, self.dim))

    @abstractmethod
    def product_rows(self, rows: Tensor) -> Tensor:
        """H applied to each of K rows: (K, dim) -> (K, dim), without checks."""

    def known_trace(self) -> Tensor | None:
        """The exact trace, 0-dim, where it takes no products; else None."""
        return None

    def spectral_blocks(self) -> Iterator[SpectralBlock] | None:
        """The blocks that H falls into; None where it falls into none that are affordable."""
        return None

    def matrix_rows(self, numbers: int) -> Iterator[tuple[int, Tensor]]:
        """Rows of H, from products with unit vectors: the index of the first, and some rows.

        That is ``numbers`` numbers at a time, but at least one row.
        """
        step = max(1, numbers // self.dim)
        for first in range(0, self.dim, step):
            count = min(step, self.dim - first)
            units = torch.zeros(count, self.dim, dtype=self.dtype, device=self.device)
            units.diagonal(offset=first).fill_(1)
            yield first, self.product_rows(units)

    def dense(self, *, max_bytes: int = MAX_DENSE_BYTES) -> Tensor:
        """H as a matrix (dim, dim), from products with the unit vectors.

        Raises:
            ValueError: it would take more than ``max_bytes``.
        """
        size = self.dtype.itemsize
        needed = self.dim * self.dim * size
        if needed > max_bytes:
            raise ValueError(
                f"H is {self.dim} x {self.dim} and would take {needed} bytes, more than "
                f"max_bytes={max_bytes}: use products (H @ V), or raise max_bytes"
            )
        result = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for first, rows in self.matrix_rows(IDENTITY_BYTES // size):
            result[first : first + len(rows)] = rows
        return result


class DenseMatrix(SymmetricOperator):
    """A tensor as an operator."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self.dim, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def product_rows(self, rows: Tensor) -> Tensor:
        return rows @ self._matrix.T

    def dense(self, *, max_bytes: int = MAX_DENSE_BYTES) -> Tensor:
        return self._matrix


class ForeignOperator(SymmetricOperator):
    """Any object with ``shape``, ``dtype``, ``device`` and ``@``."""

    def __init__(self, H: Any) -> None:
        self._H = H
        self.dim, self.dtype, self.device = int(H.shape[0]), H.dtype, torch.device(H.device)

    def product_rows(self, rows: Tensor) -> Tensor:
        return (self._H @ rows.T).T


def as_operator(H: Any) -> SymmetricOperator:
    """H as an operator, after a look at its shape, dtype and (a tensor) its entries."""
    shape = getattr(H, "shape", None)
    if shape is None or not hasattr(H, "dtype") or not hasattr(H, "device"):
        raise TypeError(
            f"H is a {type(H).__name__}; pass a LocalHessian, a dense symmetric tensor, or an "
            "object with shape, dtype, device and @"
        )
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"H has shape {tuple(shape)}; pass a square (dim, dim) one, dim >= 1")
    if H.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"H is {H.dtype}; pass float32 or float64 (H.double() of a tensor)")
    if isinstance(H, SymmetricOperator):
        return H
    if not isinstance(H, Tensor):
        return ForeignOperator(H)
    if H.layout != torch.strided:
        raise TypeError(f"H is a {H.layout} tensor; pass a dense one (H.to_dense())")
    if not H.isfinite().all():
        raise ValueError("H has entries that are not finite; look for NaN, inf or overflow")
    check_symmetric(H.detach())
    return DenseMatrix(H.detach())


def check_symmetric(matrix: Tensor) -> None:
    """Raise ValueError unless ``matrix`` is symmetric up to ``sqrt(eps) * largest entry``."""
    asymmetry = float((matrix - matrix.mT).abs().max())
    largest = float(matrix.abs().max())
    if asymmetry > torch.finfo(matrix.dtype).eps ** 0.5 * largest:
        raise ValueError(
            f"H is not symmetric: entries differ from their mirror images by up to {asymmetry:.3g} "
            f"(largest entry {largest:.3g}); if that is rounding, pass (H + H.T) / 2"
        )
