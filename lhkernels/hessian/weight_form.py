"""The closed form of the local Hessian with respect to a layer's weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lhkernels.hessian import closed_forms, patches
from lhkernels.hessian.closed_forms import ClosedForm, Factors, SpectralBlock, eigenvalue_block
from lhkernels.hessian.layer import Layer, Norm


class WeightForm(ClosedForm):
    """H_i = scale_i A - direction_i direction_i^T for each output channel i.

    A is made once and kept (the Gram form) where that takes fewer operations, counted over all
    vectors asked for so far, than two products with the patches each time (the factored form).
    """

    def __init__(self, layer: Layer, approximate: bool, form: str, memory_limit: int) -> None:
        super().__init__(layer, layer.weight.numel(), approximate, memory_limit)
        self._form = form
        self._vectors = 0  # asked for so far
        self._x = layer.padded
        self._mean = patches.mean(self._x, layer.geometry) if layer.in_train_mode else None
        self._gram: Tensor | None = None

    @property
    def name(self) -> str:
        vectors = self._vectors or closed_forms.TYPICAL_VECTORS
        return "gram" if self._gram is not None or self._prefers_gram(vectors) else "factored"

    def product(self, rows: Tensor) -> Tensor:
        self._vectors += len(rows)
        if self._gram is None and self._prefers_gram(self._vectors):
            self._gram = self._make_gram(self._x, self._kept_mean)
        shaped = rows.unflatten(1, (self.layer.n_out, self.layer.patch_size))
        return self._apply(shaped, *self.factors).flatten(1)

    def trace(self) -> Tensor:
        scale, direction = self.factors
        groups = self.layer.geometry.groups
        squares = patches.mean(torch.square(self._x.double()), self.layer.geometry)
        if self._kept_mean is not None:
            squares -= torch.square(self._kept_mean.double())
        of_group = squares.sum(-1) * self.layer.places  # trace of A, (G,)
        per_channel = of_group.repeat_interleave(self.layer.n_out // groups)
        if scale is not None:
            per_channel = per_channel * scale
        total = per_channel.sum()
        if direction is not None:
            total = total - torch.square(direction.double()).sum()
        return total.to(self.layer.weight.dtype)

    def spectral_blocks(self) -> Iterator[SpectralBlock] | None:
        layer, geometry = self.layer, self.layer.geometry
        channels = layer.n_out // geometry.groups
        scale, direction = self.factors
        matrices = geometry.groups if direction is None else layer.n_out
        if matrices * float(layer.patch_size) ** 3 > closed_forms.MAX_EIGEN_OPERATIONS:
            return None
        return self._blocks(channels, scale, direction)

    def _blocks(
        self, channels: int, scale: Tensor | None, direction: Tensor | None
    ) -> Iterator[SpectralBlock]:
        size, geometry = self.layer.patch_size, self.layer.geometry
        if scale is None and not geometry.kernel and len(self._x) <= 4 * size:
            # The singular values of the samples are more accurate than the Gram matrix's roots.
            yield SpectralBlock(self._x.double()[None], channels, is_factor=True)
            return
        mean = None if self._kept_mean is None else self._kept_mean.double()
        gram = self._make_gram(self._x.double(), mean)
        if scale is None:
            yield SpectralBlock(gram, channels, is_factor=False)
            return
        by_group = scale.double().view(geometry.groups, channels)
        if direction is None:
            values = torch.linalg.eigvalsh(gram)
            yield eigenvalue_block(by_group[:, :, None] * values[:, None], 1)
            return
        along = direction.double().view(geometry.groups, channels, size)
        for g in range(geometry.groups):
            for i in range(channels):
                matrix = by_group[g, i] * gram[g] - torch.outer(along[g, i], along[g, i])
                yield SpectralBlock(matrix[None], 1, is_factor=False)

    @property
    def _kept_mean(self) -> Tensor | None:
        """What A is centred by: the paper's approximation does not centre it."""
        return None if self.approximate else self._mean

    def batch_factors(self, norm: Norm) -> Factors:
        """scale (n_out,) and direction (n_out, d)."""
        weight = self.layer.weight.reshape(1, self.layer.n_out, -1)
        products = self._apply(weight, None, None, self._mean)[0]  # A w_i
        var = ((weight[0] * products).sum(-1) / self.layer.places).clamp_min(0)
        scale, factor = norm.batch_factors(var, self.layer.places)
        return scale, None if self.approximate else factor[:, None] * products

    def _apply(
        self,
        rows: Tensor,
        scale: Tensor | None,
        direction: Tensor | None,
        mean: Tensor | None = None,
    ) -> Tensor:
        kernels = closed_forms.kernels()
        centred = self._kept_mean if mean is None else mean
        if self._gram is not None and centred is self._kept_mean:
            return kernels.gram_hvp(self._gram, rows, scale, direction, self.memory_limit)
        x, geometry = self._x, self.layer.geometry
        return kernels.patch_hvp(x, geometry, centred, rows, scale, direction, self.memory_limit)

    def _make_gram(self, x: Tensor, mean: Tensor | None) -> Tensor:
        return closed_forms.kernels().patch_gram(x, self.layer.geometry, mean, self.memory_limit)

    def _prefers_gram(self, vectors: int) -> bool:
        if self._form != "auto":
            return self._form == "gram"
        size, groups = self.layer.patch_size, self.layer.geometry.groups
        places, n_out = self.layer.places, self.layer.n_out
        if groups * size * size * self._x.element_size() > self.memory_limit:
            return False
        # Multiplications; the Gram matrix is symmetric, which its blocks make use of.
        once = 0.6 * groups * places * size * size
        return once + vectors * n_out * size * size < 2 * vectors * places * n_out * size
