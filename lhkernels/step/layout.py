"""Memory layout: when tensors can be walked side by side as flat arrays."""

from __future__ import annotations

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
