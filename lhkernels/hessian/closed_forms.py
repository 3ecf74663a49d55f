"""What the closed forms of a layer's local Hessian have in common: factors, and kernels."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Protocol

from torch import Tensor

from lhkernels import _extension, ops
from lhkernels.hessian import patches
from lhkernels.hessian.batch_norm import BatchNorm, Factors
from lhkernels.hessian.layer import Layer
from lhkernels.hessian.patches import Geometry
from lhkernels.hessian.symmetric import SymmetricOperator

DEFAULT_MEMORY_LIMIT = 1 << 30


class ClosedForm(SymmetricOperator):
    """Products and traces of one layer's local Hessian, without differentiation.

    Args:
        layer: the block.
        dim: rows of H.
        approximate: without the terms in 1/m of a train-mode batch norm.
        memory_limit: bytes of workspace for products.
    """

    def __init__(self, layer: Layer, dim: int, approximate: bool, memory_limit: int) -> None:
        self.layer = layer
        self.dim, self.dtype, self.device = dim, layer.weight.dtype, layer.weight.device
        self.approximate = approximate
        self.memory_limit = memory_limit

    @property
    @abstractmethod
    def name(self) -> str:
        """``"gram"`` or ``"factored"``: how the last product was computed.

        ``"auto"`` before the first one where its number of vectors will decide.
        """

    @cached_property
    def factors(self) -> Factors:
        """scale (n_out,) and direction, whose shape depends on what H is with respect to."""
        norm = self.layer.norm
        if norm is None or not self.layer.in_train_mode:
            return None if norm is None else norm.fixed_scale(), None
        return self.batch_factors(norm)

    @abstractmethod
    def batch_factors(self, norm: BatchNorm) -> Factors:
        """:attr:`factors` of a train-mode batch norm."""


class Kernels(Protocol):
    """The work of the products. :mod:`lhkernels.hessian.patches` says what each one computes."""

    def patch_gram(
        self, x: Tensor, geometry: Geometry, mean: Tensor | None, memory_limit: int
    ) -> Tensor: ...

    def gram_hvp(
        self,
        gram: Tensor,
        rows: Tensor,
        scale: Tensor | None,
        direction: Tensor | None,
        memory_limit: int,
    ) -> Tensor: ...

    def patch_hvp(
        self,
        x: Tensor,
        geometry: Geometry,
        mean: Tensor | None,
        rows: Tensor,
        scale: Tensor | None,
        direction: Tensor | None,
        memory_limit: int,
    ) -> Tensor: ...

    def input_hvp(
        self,
        rows: Tensor,
        weight: Tensor,
        geometry: Geometry,
        scale: Tensor | None,
        direction: Tensor | None,
        memory_limit: int,
    ) -> Tensor: ...


def kernels() -> Kernels:
    """The module :mod:`lhkernels.ops` where the C++ operators are, else the same in Python."""
    return ops if _extension.available() else patches
