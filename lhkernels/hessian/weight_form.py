"""The closed form of the local Hessian with respect to a layer's weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lhkernels.hessian import closed_forms, patches
from lhkernels.hessian.batch_norm import BatchNorm, Factors
from lhkernels.hessian.closed_forms import ClosedForm
from lhkernels.hessian.layer import Layer
from lhkernels.hessian.symmetric import SpectralBlock

# Blocks whose eigenvalues would take more operations than this are not offered at all.
MAX_EIGEN_OPERATIONS = 2e13


class WeightForm(ClosedForm):
    """H_i = scale_i A - direction_i direction_i^T for each output channel i.

    A is made once and kept (the Gram form) where that takes fewer operations, counted over all
    vectors asked for so far, than two products with the patches each time (the factored form).
    """

    def __init__(self, layer: Layer, approximate: bool, form: str, memory_limit: int) -> None:
        super().__init__(layer, layer.weight.numel(), approximate, memory_limit)
        self._form = form
        self._vectors = 0  # asked for so far
        self._centres = layer.in_train_mode and not approximate  # the paper's (18) does not
        self._x = layer.centred if self._centres else layer.padded
        self._mean = patches.mean(self._x, layer.geometry) if self._centres else None
        self._gram: Tensor | None = None

    @property
    def name(self) -> str:
        if not self._vectors:
            return self._form
        return "factored" if self._gram is None else "gram"

    def product_rows(self, rows: Tensor) -> Tensor:
        self._vectors += len(rows)
        if self._gram is None and self._prefers_gram(self._vectors):
            self._gram = self._make_gram(self._x, self._mean)
        shaped = rows.unflatten(1, (self.layer.n_out, self.layer.patch_size))
        return self._apply(shaped, *self.factors).flatten(1)

    def known_trace(self) -> Tensor:
        layer = self.layer
        x, mean = self._in_float64()
        scale, direction = self._factors_in_float64(x, mean)
        pieces = patches.chunks(x, layer.geometry, mean, self.memory_limit)
        of_group = torch.stack([torch.square(u).sum((1, 2)) for u in pieces]).sum(0)  # of A, (G,)
        per_channel = of_group.repeat_interleave(layer.n_out // layer.geometry.groups)
        if scale is not None:
            per_channel = per_channel * scale
        total = per_channel.sum()
        if direction is not None:
            total = total - torch.square(direction).sum()
        return total.to(layer.weight.dtype)

    def spectral_blocks(self) -> Iterator[SpectralBlock] | None:
        layer = self.layer
        matrices = layer.n_out if self._centres else layer.geometry.groups
        if matrices * float(layer.patch_size) ** 3 > MAX_EIGEN_OPERATIONS:
            return None
        return self._blocks(layer.n_out // layer.geometry.groups)

    def _blocks(self, channels: int) -> Iterator[SpectralBlock]:
        size, geometry = self.layer.patch_size, self.layer.geometry
        x, mean = self._in_float64()
        scale, direction = self._factors_in_float64(x, mean)
        if scale is None and not geometry.kernel and len(x) <= 4 * size:
            # The singular values of the samples are more accurate than the Gram matrix's roots.
            yield SpectralBlock(x[None], channels, is_factor=True)
            return
        gram = self._make_gram(x, mean)
        if scale is None:
            yield SpectralBlock(gram, channels, is_factor=False)
            return
        by_group = scale.double().view(geometry.groups, channels)
        if direction is None:
            values = torch.linalg.eigvalsh(gram)
            known = by_group[:, :, None] * values[:, None]  # as 1 x 1 matrices
            yield SpectralBlock(known.reshape(-1, 1, 1), 1, is_factor=False)
            return
        along = direction.view(geometry.groups, channels, size)
        for g in range(geometry.groups):
            for i in range(channels):
                matrix = by_group[g, i] * gram[g] - torch.outer(along[g, i], along[g, i])
                yield SpectralBlock(matrix[None], 1, is_factor=False)

    def batch_factors(self, norm: BatchNorm) -> Factors:
        """scale (n_out,) and direction (n_out, d)."""
        layer = self.layer
        if not self._centres:
            z = patches.forward(layer.centred, layer.weight, layer.geometry)
            var = z.var([0, *range(2, z.dim())], correction=0)
            return norm.batch_factors(var, layer.places)[0], None
        weight = layer.weight.reshape(1, layer.n_out, -1)
        return self._factors_of(norm, weight[0], self._apply(weight, None, None)[0])

    def _factors_of(self, norm: BatchNorm, weight: Tensor, products: Tensor) -> Factors:
        """:attr:`factors` from the products A w_i, (n_out, d)."""
        places = self.layer.places
        var = ((weight * products).sum(-1) / places).clamp_min(0)
        scale, factor = norm.batch_factors(var, places)
        return scale, factor[:, None] * products

    def _in_float64(self) -> tuple[Tensor, Tensor | None]:
        """The input and the mean patch."""
        return self._x.double(), None if self._mean is None else self._mean.double()

    def _factors_in_float64(self, x: Tensor, mean: Tensor | None) -> Factors:
        """:attr:`factors`, where sums are taken of which a batch norm takes nearly all away."""
        layer = self.layer
        if layer.norm is None or not self._centres:
            return self.factors
        weight = layer.weight.double().reshape(1, layer.n_out, -1)
        patch_hvp = closed_forms.kernels().patch_hvp
        products = patch_hvp(x, layer.geometry, mean, weight, None, None, self.memory_limit)
        return self._factors_of(layer.norm, weight[0], products[0])

    def _apply(self, rows: Tensor, scale: Tensor | None, direction: Tensor | None) -> Tensor:
        kernels = closed_forms.kernels()
        if self._gram is not None:
            return kernels.gram_hvp(self._gram, rows, scale, direction, self.memory_limit)
        x, geometry, mean = self._x, self.layer.geometry, self._mean
        return kernels.patch_hvp(x, geometry, mean, rows, scale, direction, self.memory_limit)

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
