"""Memory layout: when tensors can be walked side by side as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, each once, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have equal strides, size-1 dimensions left aside."""
    if a.stride() == b.stride():
        return True
    return all(x == y or n <= 1 for x, y, n in zip(a.stride(), b.stride(), a.shape))


def in_layout_of(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor itself, or a copy, in the layout of ``like``, which is dense."""
    if same_layout(tensor, like):
        return tensor
    return tensor.new_empty_strided(like.shape, like.stride()).copy_(tensor)


def laid_out(
    tensors: Sequence[Tensor], like: Sequence[Tensor], strides: list[tuple[int, ...]]
) -> list[Tensor]:
    """The tensors in the layouts of others, whose strides these are."""
    if [tensor.stride() for tensor in tensors] == strides:
        return list(tensors)
    return [in_layout_of(tensor, other) for tensor, other in zip(tensors, like, strict=True)]


def as_real(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors of one dtype; complex ones as real numbers with a last dimension of 2."""
    if not tensors or not tensors[0].is_complex():
        return tensors
    return [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]


def is_ordinary(tensor: Tensor) -> bool:
    """Whether it is no subclass of Tensor that takes operations over (FakeTensor, TwoTensor)."""
    return type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def has_own_memory(tensors: Sequence[Tensor]) -> bool:
    """Whether each is values in memory, which no other of them shares: what a kernel may write.

    Not so: tensors that are not ordinary, views that are conjugated or negated when they are read,
    and parameters made of one piece of memory.
    """
    if not all(is_ordinary(t) and not t.is_conj() and not t.is_neg() for t in tensors):
        return False
    filled = [t for t in tensors if t.numel() and t.device.type != "meta"]
    spans = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in filled)
    return all(end <= start for (_, end), (start, _) in pairwise(spans))
