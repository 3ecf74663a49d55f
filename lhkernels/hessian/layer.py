"""Blocks that have a closed form: a linear or convolutional layer, alone or with a batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lhkernels.hessian.batch_norm import BATCH_NORMS, BatchNorm
from lhkernels.hessian.patches import Geometry
from lhkernels.hessian.snapshot import Snapshot

CONVOLUTIONS: dict[type, int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


@dataclass(frozen=True)
class Layer:
    """z = W u at each of m = N * P places, then perhaps a batch norm.

    Attributes:
        weight: (n_out, C/G, *kernel).
        inputs: the block's input as (N, C, *spatial); (m, n_in) for a linear layer.
        geometry: kernel, stride, padding with zeros, dilation, groups.
        norm: the batch norm after it.
        extend: padding with other than zeros or unlike on both sides, done first:
            (N, C, *spatial) -> (N, C, *padded); None where there is none.
        circular: whether the whole padding is circular and the output as large as the input.
    """

    weight: Tensor
    inputs: Tensor
    geometry: Geometry
    norm: BatchNorm | None
    extend: Callable[[Tensor], Tensor] | None = None
    circular: bool = False

    @property
    def in_train_mode(self) -> bool:
        """Whether a batch norm follows that uses the batch's own statistics."""
        return self.norm is not None and self.norm.running_var is None

    @property
    def n_out(self) -> int:
        """Output units or channels."""
        return self.weight.shape[0]

    @property
    def patch_size(self) -> int:
        """d: the numbers that one output unit sees."""
        return self.weight[0].numel()

    @property
    def padded(self) -> Tensor:
        """The input that the geometry's kernel moves over."""
        return self.inputs if self.extend is None else self.extend(self.inputs)

    @property
    def centred(self) -> Tensor:
        """:attr:`padded` less the mean of each channel: the same to a train-mode batch norm.

        Means that are large against the spread would cancel in what follows. Zeros that the kernel
        touches can't be shifted along; such an input is left as it is, and its edges spread it.
        """
        x = self.padded
        if any(self.geometry.padding):
            return x
        return x - x.mean([0, *range(2, x.dim())], keepdim=True)

    @property
    def output_size(self) -> tuple[int, ...]:
        """The output's spatial size."""
        shape = self.inputs[:1].to("meta")
        padded = shape if self.extend is None else self.extend(shape)
        return self.geometry.output_size(padded.shape[2:])

    @property
    def places(self) -> int:
        """m: samples times output positions."""
        return len(self.inputs) * math.prod(self.output_size)


def read(snapshot: Snapshot) -> Layer | None:
    """The layer that the block is; None if it is anything else."""
    parts = _parts(snapshot.module)
    if len(parts) not in (1, 2) or len(snapshot.inputs) != 1:
        return None
    norm = None
    x = snapshot.inputs[0]
    if len(parts) == 2:
        if type(parts[1]) not in BATCH_NORMS or (type(parts[0]) is nn.Linear and x.dim() != 2):
            return None
        norm = BatchNorm.read(parts[1], x)
    if type(parts[0]) is nn.Linear:
        weight = parts[0].weight.detach()
        if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
            return None  # running the block tells why it can't be
        return Layer(weight, x.reshape(-1, x.shape[-1]), Geometry(), norm)
    if type(parts[0]) in CONVOLUTIONS:
        return _read_convolution(parts[0], x, norm)
    return None


def _parts(module: nn.Module) -> list[nn.Module]:
    """The modules that run one after another; one that is not plain is [module, ...] unsplit."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if any(hooks) or "forward" in module.__dict__:
        return []
    if type(module) is nn.Identity:
        return []
    if type(module) is nn.Sequential:
        parts = [_parts(child) for child in module]
        plain = all(p or type(child) is nn.Identity for p, child in zip(parts, module, strict=True))
        return [part for p in parts for part in p] if plain else []
    return [module]


def _read_convolution(conv: Any, x: Tensor, norm: BatchNorm | None) -> Layer | None:
    spatial = CONVOLUTIONS[type(conv)]
    if x.dim() == 1 + spatial:
        if norm is not None:
            return None
        x = x.unsqueeze(0)
    if x.dim() != 2 + spatial or x.shape[1] != conv.in_channels:
        return None
    padding, extend = conv.padding, None
    zeros = (0,) * spatial
    if padding == "valid":
        padding = zeros
    if padding == "same" or conv.padding_mode != "zeros":
        # The pairs that the module itself passes to pad(): last dimension first, left and right.
        widths = tuple(conv._reversed_padding_repeated_twice)
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padding = zeros
        if any(widths):

            def extend(x: Tensor) -> Tensor:
                return torch.nn.functional.pad(x, widths, mode=mode)

    geometry = Geometry(
        tuple(conv.kernel_size),
        tuple(conv.stride),
        tuple(padding),
        tuple(conv.dilation),
        conv.groups,
    )
    layer = Layer(conv.weight.detach(), x, geometry, norm, extend)
    pointwise = set(geometry.kernel) == {1}
    if (
        set(geometry.stride) == {1}
        and layer.output_size == tuple(x.shape[2:])
        and (pointwise or conv.padding_mode == "circular")
    ):
        return replace(layer, circular=True)
    return layer
