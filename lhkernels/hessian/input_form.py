"""The closed form of the local Hessian with respect to a layer's input."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lhkernels.hessian import closed_forms, patches
from lhkernels.hessian.batch_norm import BatchNorm, Factors
from lhkernels.hessian.closed_forms import ClosedForm
from lhkernels.hessian.layer import Layer
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur
from lhkernels.hessian.symmetric import SpectralBlock

# Output channels whose transposes are taken at a time for the trace.
TRACE_CHANNELS = 16


class InputForm(ClosedForm):
    """H = W^T M W, M as in :mod:`lhkernels.hessian.batch_norm`: for the whole batch at once.

    A linear layer whose samples are not coupled has the Gram form W^T diag(scale) W, one
    (n_in, n_in) matrix for every sample; all else is factored.
    """

    def __init__(self, layer: Layer, approximate: bool, form: str, memory_limit: int) -> None:
        super().__init__(layer, layer.inputs.numel(), approximate, memory_limit)
        self._couples = layer.in_train_mode and not approximate
        self._gram: Tensor | None = None
        has_gram = not layer.geometry.kernel and not self._couples
        if form == "gram" and not has_gram:
            raise ValueError(
                "form='gram' with wrt='input' is for a linear layer whose samples are not coupled "
                "by a train-mode batch norm: use form='factored' or 'auto'"
            )
        n_out, n_in = layer.n_out, layer.patch_size
        self._uses_gram = has_gram and (form == "gram" or (form == "auto" and n_in <= 2 * n_out))

    @property
    def name(self) -> str:
        return "gram" if self._uses_gram else "factored"

    def product_rows(self, rows: Tensor) -> Tensor:
        x = self.layer.inputs
        shaped = rows.unflatten(1, x.shape)
        if self._uses_gram:
            if self._gram is None:
                self._gram = self._input_gram(self.layer.weight)
            kernels = closed_forms.kernels()
            return kernels.gram_hvp(
                self._gram[None], shaped, None, None, self.memory_limit
            ).flatten(1)
        if self.layer.extend is None:
            return self._factored(shaped).flatten(1)
        result = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        for row, out in zip(shaped, result, strict=True):
            padded, transpose = _transpose_of(self.layer.extend, row.contiguous())
            out.copy_(transpose(self._factored(padded[None])[0])[0].flatten())
        return result

    def known_trace(self) -> Tensor | None:
        layer = self.layer
        if layer.extend is not None:
            return None  # two taps may meet in one input
        scale, direction = self.factors
        reach = self._reach()
        per_channel = reach if scale is None else reach * scale
        if scale is not None and direction is not None:
            ones = torch.ones(1, layer.n_out, *layer.output_size).to(direction)
            means = self._transposed_squares(ones) * len(layer.inputs) / layer.places
            per_channel = per_channel - scale * means - self._transposed_squares(direction)
        return per_channel.sum().to(layer.weight.dtype)

    def spectral_blocks(self) -> Iterator[SpectralBlock] | None:
        layer = self.layer
        if self._couples or not (layer.circular or not layer.geometry.kernel):
            return None
        if layer.geometry.kernel:
            return self._fourier_blocks()
        return iter((self._linear_block(),))

    def _factored(self, shaped: Tensor) -> Tensor:
        weight, geometry = self.layer.weight, self.layer.geometry
        scale, direction = self.factors
        kernels = closed_forms.kernels()
        return kernels.input_hvp(shaped, weight, geometry, scale, direction, self.memory_limit)

    def batch_factors(self, norm: BatchNorm) -> Factors:
        """scale (n_out,) and direction (N, n_out, *out) of M."""
        layer = self.layer
        z = patches.forward(layer.centred, layer.weight, layer.geometry)
        dims = [0, *range(2, z.dim())]
        var, mean = torch.var_mean(z, dims, correction=0)
        scale, factor = norm.batch_factors(var, layer.places)
        if not self._couples:
            return scale, None
        channel = (-1, *(1,) * (z.dim() - 2))
        return scale, z.sub_(mean.view(channel)).mul_(factor.view(channel))

    def _input_gram(self, weight: Tensor) -> Tensor:
        scale, _ = self.factors
        return weight.mT @ (weight if scale is None else scale.to(weight.dtype)[:, None] * weight)

    def _reach(self) -> Tensor:
        """Squared norms of W's rows, summed over each output channel's places: (n_out,) float64."""
        layer = self.layer
        squares = torch.square(layer.weight.double())
        ones = torch.ones(1, *layer.inputs.shape[1:]).to(squares)
        z = patches.forward(ones, squares, layer.geometry)
        return z.reshape(layer.n_out, -1).sum(1) * len(layer.inputs)

    def _transposed_squares(self, z: Tensor) -> Tensor:
        """``||W_i^T z_i||^2`` of each channel alone, (n_out,) float64, of z (N, n_out, *out)."""
        layer, geometry = self.layer, self.layer.geometry
        if not geometry.kernel:
            squares = torch.square(layer.weight.double()).sum(1)
            return torch.square(z.double()).sum(0) * squares
        totals = []
        for part, weight in zip(
            z.split(TRACE_CHANNELS, 1), layer.weight.split(TRACE_CHANNELS), strict=True
        ):
            # As a depthwise convolution, each channel's transpose lands in channels of its own.
            inputs = part.new_empty(1).expand(
                len(z), len(weight) * weight.shape[1], *layer.inputs.shape[2:]
            )
            alone = geometry._replace(groups=len(weight))
            back = patches.backward(part.contiguous(), inputs, weight, alone)
            squares = torch.square(back.double()).unflatten(1, (len(weight), -1))
            totals.append(squares.transpose(0, 1).flatten(1).sum(1))
        return torch.cat(totals)

    def _linear_block(self) -> SpectralBlock:
        layer = self.layer
        weight = layer.weight.double()
        scale, _ = self.factors
        ratio = layer.n_out / layer.patch_size
        if scale is None:
            variance = float(layer.n_out * torch.square(weight).mean())
            law = MarchenkoPastur(ratio, variance) if variance > 0 else None
        else:
            weight = weight * scale.double().sqrt()[:, None]
            law = MarchenkoPastur(ratio, normalized=True) if self.approximate else None
        return SpectralBlock(weight[None], len(layer.inputs), is_factor=True, law=law)

    def _fourier_blocks(self) -> Iterator[SpectralBlock]:
        """A circular convolution is a matrix (n_out/G, C/G) at each frequency."""
        layer, groups = self.layer, self.layer.geometry.groups
        size = layer.inputs.shape[2:]
        weight = layer.weight.double()
        scale, _ = self.factors
        if scale is not None:
            weight = weight * scale.double().sqrt().view(-1, *(1,) * (weight.dim() - 1))
        placed = weight.new_zeros(*weight.shape[:2], *size)
        places = [
            torch.arange(k, device=weight.device) * d % s
            for k, d, s in zip(layer.geometry.kernel, layer.geometry.dilation, size, strict=True)
        ]
        index = torch.meshgrid(*places, indexing="ij")
        # Taps that meet after going round add up.
        flat = torch.zeros_like(index[0])
        for i, s in zip(index, size, strict=True):
            flat = flat * s + i
        placed.flatten(2).index_add_(2, flat.flatten(), weight.flatten(2))
        symbols = torch.fft.fftn(placed, dim=tuple(range(2, placed.dim())))
        by_frequency = symbols.flatten(2).permute(2, 0, 1)  # (frequencies, n_out, C/G)
        per_group = layer.n_out // groups
        for g in range(groups):
            block = by_frequency[:, g * per_group : (g + 1) * per_group]
            yield SpectralBlock(block, len(layer.inputs), is_factor=True)


def _transpose_of(
    extend: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor]]]:
    """``extend(x)`` and the transpose of the linear map ``extend``."""
    padded, transpose, *_ = torch.func.vjp(extend, x)
    return padded, transpose
