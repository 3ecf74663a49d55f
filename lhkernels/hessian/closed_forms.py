"""Closed forms of the local Hessian of a layer, with or without a batch norm.

With U the patches (d, m) that a layer's weight sees, A = sum of (u - mean)(u - mean)^T, and for a
train-mode batch norm v_i = Var[z_i] + eps, rho_i = Var[z_i] / v_i, zhat_i the normalised output of
channel i before gamma:

    weight:  H_i = gamma_i^2 / v_i (A - (2 - rho_i) / m u_i u_i^T),  u_i = A w_i / sqrt(v_i)
    input:   H = W^T M W,  M_i = gamma_i^2 / v_i (I - 11^T/m - (2 - rho_i) / m zhat_i zhat_i^T)

exactly, and Gauss-Newton. Without a batch norm A is not centred and the factors are 1; with one in
eval mode they are gamma_i^2 / (running_var_i + eps). The derivation is in docs/local-hessian.md.
The paper's approximation (17)-(18) drops the terms in 1/m.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor

from lhkernels import _extension, ops
from lhkernels.hessian import patches
from lhkernels.hessian.layer import Layer, Norm
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur

DEFAULT_MEMORY_LIMIT = 1 << 30
# Blocks whose eigenvalues would take more operations than this are not offered at all.
MAX_EIGEN_OPERATIONS = 2e13

# Of a batch norm: what multiplies A or the identity, and the vector whose outer product is taken
# away; None is 1, and 0.
Factors: TypeAlias = tuple[Tensor | None, Tensor | None]


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


class ClosedForm(ABC):
    """Products and traces of one layer's local Hessian, without differentiation.

    Args:
        layer: the block.
        dim: rows of H.
        approximate: without the terms in 1/m of a train-mode batch norm.
        memory_limit: bytes of workspace for products.
    """

    def __init__(self, layer: Layer, dim: int, approximate: bool, memory_limit: int) -> None:
        self.layer = layer
        self.dim = dim
        self.approximate = approximate
        self.memory_limit = memory_limit

    @property
    @abstractmethod
    def name(self) -> str:
        """``"gram"`` or ``"factored"``: how the last product was computed.

        ``"auto"`` before the first one where its number of vectors will decide.
        """

    @abstractmethod
    def product(self, rows: Tensor) -> Tensor:
        """H times each row, (K, dim) -> (K, dim)."""

    @abstractmethod
    def trace(self) -> Tensor | None:
        """The exact trace, 0-dim; None where only products tell it."""

    @abstractmethod
    def spectral_blocks(self) -> Iterator[SpectralBlock] | None:
        """The blocks that H falls into; None where it falls into none that are affordable."""

    @cached_property
    def factors(self) -> Factors:
        """scale (n_out,) and direction, whose shape depends on what H is with respect to."""
        norm = self.layer.norm
        if norm is None:
            return None, None
        if norm.running_var is not None:
            return norm.running_scale(norm.running_var), None
        return self.batch_factors(norm)

    @abstractmethod
    def batch_factors(self, norm: Norm) -> Factors:
        """:attr:`factors` of a train-mode batch norm."""


def kernels() -> Any:
    """The C++ operators where they are there, else the same in Python."""
    return ops if _extension.available() else patches


def eigenvalue_block(values: Tensor, multiplicity: int) -> SpectralBlock:
    """Eigenvalues that are known already, as 1 x 1 matrices."""
    return SpectralBlock(values.reshape(-1, 1, 1), multiplicity, is_factor=False)
