"""Local Hessian products of one linear or convolutional layer, in plain PyTorch.

A layer is ``z = W u`` at each of m = N * P places: a linear layer (no spatial dimensions, P = 1) or
a convolution in 1, 2 or 3 dimensions, of which ``u`` (d = C/G * prod(kernel) numbers for each of G
groups) is the patch under the kernel. With the patches as columns of ``U`` (G, d, m), all that the
local Hessian of the weight needs is the action of

    A = (U - mean 1^T) (U - mean 1^T)^T        (G, d, d)

either as a matrix (:func:`patch_gram`) or as two products with U (:func:`patch_hvp`), always over
chunks of U that stay within ``memory_limit`` bytes. A batch norm adds a factor and a rank-one term
for each output channel: ``scale`` and ``direction``. docs/local-hessian.md has the formulas.

``csrc/hvp.cpp`` does the same in C++, under the same names in :mod:`lhkernels.ops`. Padding is with
zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Of a chunk of U: larger ones leave the cache, smaller ones make the matrix products too thin.
CHUNK_BYTES = 4 << 20
# Of vectors at a time in the factored form, which makes the patches again for each chunk of them.
FACTORED_BYTES = 12 << 20
# Only the blocks on and above the diagonal of a symmetric product are computed.
SYMMETRIC_BLOCK = 192


class Geometry(NamedTuple):
    """How a kernel moves over the input; empty tuples for a linear layer."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The output's spatial size for an input's."""
        return tuple(
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, k, t, p, d in zip(
                size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )


def mean(x: Tensor, geometry: Geometry) -> Tensor:
    """The mean patch, (G, d), of the input x (N, C, *spatial)."""
    average = view(pad(x.mean(0, keepdim=True), geometry), geometry)
    return average.flatten(x.dim()).mean(-1).reshape(geometry.groups, -1)


def patch_gram(x: Tensor, geometry: Geometry, mean: Tensor | None, memory_limit: int) -> Tensor:
    """A, (G, d, d), of x (N, C, *spatial); not centred if ``mean`` is None."""
    size = x.shape[1] // geometry.groups * math.prod(geometry.kernel)
    result = x.new_zeros(geometry.groups, size, size)
    starts = range(0, size, SYMMETRIC_BLOCK)
    for columns in chunks(x, geometry, mean, memory_limit):
        for a in starts:
            b = min(a + SYMMETRIC_BLOCK, size)
            result[:, :b, a:b].baddbmm_(columns[:, :b], columns[:, a:b].mT)
    for a in starts:
        b = min(a + SYMMETRIC_BLOCK, size)
        result[:, a:b, :a] = result[:, :a, a:b].mT
    return result


def gram_hvp(
    gram: Tensor, rows: Tensor, scale: Tensor | None, direction: Tensor | None, memory_limit: int
) -> Tensor:
    """``scale_i A v - direction_i (direction_i . v)`` of the rows (K, n_out, d) of each output i.

    Args:
        gram: A, (G, d, d).
        rows: (K, n_out, d), any strides.
        scale: (n_out,); None is 1.
        direction: (n_out, d); None is 0.
        memory_limit: bytes beside the result and ``rows``.
    """
    limit = min(memory_limit, CHUNK_BYTES)
    return _for_outputs(rows, len(gram), scale, direction, limit, lambda part: part @ gram)


def patch_hvp(
    x: Tensor,
    geometry: Geometry,
    mean: Tensor | None,
    rows: Tensor,
    scale: Tensor | None,
    direction: Tensor | None,
    memory_limit: int,
) -> Tensor:
    """As :func:`gram_hvp`, by two products with the patches of x (N, C, *spatial) each time."""

    def multiply(part: Tensor) -> Tensor:
        total = torch.zeros_like(part)
        for columns in chunks(x, geometry, mean, memory_limit, beside=part.shape[1]):
            total.baddbmm_(part @ columns, columns.mT)
        return total

    limit = min(memory_limit, FACTORED_BYTES)
    return _for_outputs(rows, geometry.groups, scale, direction, limit, multiply)


def input_hvp(
    rows: Tensor,
    weight: Tensor,
    geometry: Geometry,
    scale: Tensor | None,
    direction: Tensor | None,
    memory_limit: int,
) -> Tensor:
    """``W^T M W v`` of the inputs ``rows`` (K, N, C, *spatial), any strides, of a layer.

    On the outputs Z of a channel, ``M Z = scale (Z - mean Z) - direction (direction . Z)`` with
    ``direction`` (N, n_out, *out), means and products over the samples and places; without
    ``direction``, ``M Z = scale Z``.
    """
    places = math.prod(geometry.output_size(rows.shape[3:]))
    numbers = 2 * (rows.shape[1] * weight.shape[0] * places + rows[0].numel())
    limit = min(memory_limit, 2 * CHUNK_BYTES)
    count = max(1, limit // max(1, numbers * rows.element_size()))
    result = torch.empty_like(rows)
    for part, out in zip(rows.split(count), result.split(count), strict=True):
        flat = part.contiguous().flatten(0, 1)
        z = forward(flat, weight, geometry)
        z = z.view(part.shape[0], part.shape[1], weight.shape[0], -1)
        if direction is not None:
            along = direction.reshape(z.shape[1:])
            products = torch.einsum("kncp,ncp->kc", z, along)[:, None, :, None]
            z -= z.mean((1, 3), keepdim=True)
            if scale is not None:
                z *= scale[:, None]
            for one, factor in zip(z, products, strict=True):
                one.addcmul_(along, factor, value=-1)
        elif scale is not None:
            z *= scale[:, None]
        out.copy_(backward(z, flat, weight, geometry).view(part.shape))
    return result


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    if not geometry.kernel:
        return x @ weight.mT
    _, stride, padding, dilation, groups = geometry
    zeros = (0,) * len(stride)
    return torch.convolution(x, weight, None, stride, padding, dilation, False, zeros, groups)


def backward(z: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The transpose of :func:`forward`; of x only the shape counts."""
    if not geometry.kernel:
        return z.reshape(-1, weight.shape[0]) @ weight
    _, stride, padding, dilation, groups = geometry
    out = geometry.output_size(x.shape[2:])
    return torch.ops.aten.convolution_backward(
        z.reshape(len(x), weight.shape[0], *out),
        x,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        (0,) * len(stride),
        groups,
        (True, False, False),
    )[0]


def _for_outputs(
    rows: Tensor,
    groups: int,
    scale: Tensor | None,
    direction: Tensor | None,
    limit: int,
    multiply: Callable[[Tensor], Tensor],
) -> Tensor:
    """``multiply`` maps (G, any, d) to the products with each group's A.

    Of rows (K, n_out, d), as many outputs (or vectors of one output) at a time as ``limit`` bytes
    allow.
    """
    per_group, size = rows.shape[1] // groups, rows.shape[2]
    count = max(1, limit // max(1, 2 * groups * size * rows.element_size()))
    vectors = min(count, len(rows))
    outputs = min(max(1, count // max(1, vectors)), per_group)
    result = torch.empty_like(rows)  # dense strides are kept: columns in, columns out
    source = rows.unflatten(1, (groups, per_group)).transpose(0, 1)  # (G, K, n_out/G, d)
    target = result.unflatten(1, (groups, per_group)).transpose(0, 1)
    for k in range(0, len(rows), max(1, vectors)):
        for i in range(0, per_group, outputs):
            here = (slice(None), slice(k, k + vectors), slice(i, i + outputs))
            part = source[here].contiguous()
            out = multiply(part.view(groups, -1, size)).view(part.shape)
            if scale is not None:
                out *= scale.view(groups, 1, per_group, 1)[:, :, here[2]]
            if direction is not None:
                along = direction.view(groups, per_group, size)[:, here[2]]
                products = part.transpose(1, 2) @ along[..., None]
                out.transpose(1, 2).addcmul_(products, along[:, :, None], value=-1)
            target[here] = out
    return result


def chunks(
    x: Tensor, geometry: Geometry, mean: Tensor | None, memory_limit: int, beside: int = 0
) -> Iterator[Tensor]:
    """U in pieces (G, d, about as many columns as ``memory_limit`` allows).

    ``beside``: numbers that the caller needs for each column and group.
    """
    groups = geometry.groups
    size = x.shape[1] // groups * math.prod(geometry.kernel)
    places = geometry.output_size(x.shape[2:])
    row_places = math.prod(places[1:])
    column_bytes = groups * (size + beside) * x.element_size()
    columns = max(1, min(memory_limit, CHUNK_BYTES) // column_bytes)
    samples = max(1, columns // max(1, math.prod(places)))
    lines = max(1, columns // max(1, row_places)) if places else 1
    sample_dim = x.dim()  # of the view (G, C/G, *kernel, N, *out)
    for first in range(0, len(x), samples):
        patches = view(pad(x[first : first + samples], geometry), geometry)
        pieces = patches.split(lines, sample_dim + 1) if places and samples == 1 else (patches,)
        for piece in pieces:
            flat = piece.reshape(groups, size, -1)
            yield flat if mean is None else flat - mean[:, :, None]


def pad(x: Tensor, geometry: Geometry) -> Tensor:
    """x with the zeros that the kernel may touch."""
    if not any(geometry.padding):
        return x
    widths = [width for p in reversed(geometry.padding) for width in (p, p)]
    return torch.nn.functional.pad(x, widths)


def view(padded: Tensor, geometry: Geometry) -> Tensor:
    """The patches of a padded input as a view, (G, C/G, *kernel, N, *out)."""
    kernel, stride, _, dilation, groups = geometry
    out = geometry._replace(padding=(0,) * len(kernel)).output_size(padded.shape[2:])
    batch_stride, channel_stride, *steps = padded.stride()
    channels = padded.shape[1] // groups
    return padded.as_strided(
        (groups, channels, *kernel, len(padded), *out),
        (
            channels * channel_stride,
            channel_stride,
            *(a * b for a, b in zip(dilation, steps, strict=True)),
            batch_stride,
            *(a * b for a, b in zip(stride, steps, strict=True)),
        ),
    )
