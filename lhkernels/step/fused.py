"""What the fused backends share: layouts, buffers, and norms carried from step to step."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lhkernels.hyperparameters import Hyperparameters
from lhkernels.plan import Block
from lhkernels.step.base import UNMODIFIED, Buffers, Modifiers, StepSet
from lhkernels.step.layout import in_layout_of

Mark: TypeAlias = tuple[int, int, int]  # a weight's storage, address and version


class FusedSet(StepSet):
    """Dense parameters, stepped by one kernel that leaves the norms for the next step.

    A carried norm is valid while nobody else wrote the weight: each weight is marked with its
    storage, address and version after the step, and those whose mark has changed are recomputed
    before the next one. Writes that change no mark are found by the kernel, in what it reads
    (docs/step.md). Without ``carries`` every step recomputes the norms.
    """

    carries = True

    def __init__(
        self,
        params: Sequence[Tensor],
        blocks: Sequence[Block] | None,
        **options: Any,
    ) -> None:
        super().__init__(params, blocks, **options)
        self.uses_norm = [block.uses_norm for block in self.blocks or ()]
        self._weights = [i for i, uses in enumerate(self.uses_norm) if uses]
        self.invalidate_norms()

    @staticmethod
    @abstractmethod
    def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
        """Why the backend can't step such parameters here; None if it can."""

    @abstractmethod
    def launch(
        self,
        grads: Sequence[Tensor],
        buffers: Sequence[Tensor],
        stale: list[int],
        h: Hyperparameters,
        given: Modifiers,
    ) -> None:
        """One step on :attr:`views`, and the norms of what it wrote.

        Real dense tensors in their parameters' layout; no buffers where momentum is 0. ``stale``
        are the positions of parameters whose norms have to be recomputed first. Must bump the
        versions of what it writes.
        """

    @property
    def views(self) -> list[Tensor]:
        """The parameters as dense real tensors."""
        return [_real(p) for p in self.params] if self.params[0].is_complex() else self.params

    def invalidate_norms(self) -> None:
        self._marks: list[Mark] = [(0, 0, -1)] * len(self._weights)
        self._seen = self._marks
        self._storages: list[StorageWeakRef] = []

    def stale(self) -> list[int]:
        """The weights that somebody else wrote since the last step."""
        params = self.params
        self._seen = [_mark(params[i]) for i in self._weights]
        if not self.carries:
            return self._weights
        if self._seen == self._marks:
            return []
        return [i for i, a, b in zip(self._weights, self._marks, self._seen) if a != b]

    def mark(self) -> None:
        """The norms are those of the weights as they are now, where :meth:`stale` has seen them."""
        params = self.params
        if self._seen != self._marks:
            # while it is referred to, weakly, no other storage can come to have its identity
            self._storages = [StorageWeakRef(params[i].untyped_storage()) for i in self._weights]
        self._marks = [
            (storage, address, params[i]._version)
            for i, (storage, address, _) in zip(self._weights, self._seen)
        ]

    @torch.no_grad()
    def step(
        self,
        grads: Sequence[Tensor],
        buffers: Buffers,
        h: Hyperparameters,
        given: Modifiers = UNMODIFIED,
    ) -> Buffers:
        strides = [param.stride() for param in self.params]
        kept = self._kept(buffers, strides) if h.momentum != 0 else []
        real, reals = _laid_out(list(grads), self.params, strides), kept
        if self.params[0].is_complex():
            real, reals = [_real(grad) for grad in real], [_real(buffer) for buffer in kept]
        self.launch(real, reals, self.stale(), h, given)
        self.mark()
        return kept

    def _kept(self, buffers: Buffers, strides: list[tuple[int, ...]]) -> list[Tensor]:
        """The momentum buffers in the parameters' layouts; zeros before the first step."""
        dtype = self.momentum_dtype or self.params[0].dtype
        kept = [
            torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            if buffer is None
            # a kernel takes one dtype for all of them
            else (buffer if buffer.dtype is dtype else buffer.to(dtype))
            for param, buffer in zip(self.params, buffers, strict=True)
        ]
        return _laid_out(kept, self.params, strides)


def _laid_out(
    tensors: list[Tensor], like: Sequence[Tensor], strides: list[tuple[int, ...]]
) -> list[Tensor]:
    """The tensors in the layouts of others, whose strides these are."""
    if [tensor.stride() for tensor in tensors] == strides:
        return tensors
    return [in_layout_of(tensor, other) for tensor, other in zip(tensors, like, strict=True)]


def _mark(tensor: Tensor) -> Mark:
    return tensor.untyped_storage()._cdata, tensor.data_ptr(), tensor._version


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as real numbers with a last dimension of 2."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def warn_of_unseen_write(name: str | int) -> None:
    """Warn that a step was taken, or nearly so, with the norm of a weight as it no longer was."""
    warnings.warn(
        f"parameter {name!r} has been written since the last step without its version counter "
        "(through p.data, a NumPy view or shared memory, as nn.utils.vector_to_parameters does, or "
        "by another optimizer with fused=True), so the norm kept from that step was not this "
        "weight's. Every step now computes norms anew, with one more read of the weights: write to "
        "parameters themselves under torch.no_grad(), or call optimizer.invalidate_norms() after "
        "such writes",
        stacklevel=5,  # the line that calls an optimizer's step
    )
