"""What every backend offers: the parameters of one group, device and dtype, stepped together."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lhkernels import reference
from lhkernels.hyperparameters import Hyperparameters
from lhkernels.plan import Block
from lhkernels.step.cuts import Cut
from lhkernels.step.layout import is_ordinary, laid_out
from lhkernels.step.norms import CarriedNorms

Buffers: TypeAlias = Sequence[Tensor | None]
"""A momentum buffer per parameter; None before its first step."""


class Modifiers(NamedTuple):
    """What a step may be given beside gradients, buffers and hyperparameters; None is without.

    Attributes:
        scales: ``s_b``, (B,), instead of those from the set's own norms.
        grad_scale: 1-element; gradients are divided by it first (GradScaler's scale).
        found_inf: 1-element; anything but 0 leaves everything as it is.
        seed: 0-dim int64; rounds bfloat16 and float16 parameters stochastically, each with draws of
            its own (:func:`stream_of`).
    """

    scales: Tensor | None = None
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    seed: Tensor | None = None


UNMODIFIED = Modifiers()


class StepSet(ABC):
    """B parameters of one device and dtype, and the rule for their scales.

    Between norms and scales there is a seam: :meth:`sq_norms` may be read, combined with those of
    other sets or ranks, and the scales given to :meth:`step` as
    ``Modifiers(scales=...)``. Without these the set makes them from its own norms.

    Args:
        params: dense tensors.
        blocks: their places in the plan; None for plain SGD.
        names: of the parameters, or their positions in the optimizer; default: those in the set.
        momentum_dtype: of the momentum buffers; None for the parameters' own.
        capturable: the step may be captured in a CUDA graph.
        scale_constant: divides the scales of all blocks, but not of plain parameters.
        wholes: where some of ``params`` are parts of DTensors: the parameters as the optimizer has
            them.
    """

    name: str
    norms: CarriedNorms | None = None

    def __init__(
        self,
        params: Sequence[Tensor],
        blocks: Sequence[Block] | None,
        *,
        names: Sequence[str | int] | None = None,
        momentum_dtype: torch.dtype | None = None,
        capturable: bool = False,
        scale_constant: float | None = None,
        wholes: Sequence[Tensor] | None = None,
    ) -> None:
        if momentum_dtype is not None and params[0].is_complex():
            raise ValueError(
                f"momentum_dtype={momentum_dtype} is real, but a parameter of the group has "
                f"{params[0].dtype}; put it into a group with momentum_dtype=None"
            )
        self.params = list(params)
        self.wholes = self.params if wholes is None else list(wholes)
        self.cuts = [Cut.of(whole) for whole in self.wholes]
        self.has_values = params[0].device.type != "meta" and all(map(is_ordinary, params))
        self.admitted = False  # whether all of them have passed the check of the first step
        self.device = params[0].device
        self.blocks = blocks
        self.names = list(range(len(self.params)) if names is None else names)
        # Whether norms that it needs have parts on other ranks.
        self.is_cut = any(c and b.uses_norm for c, b in zip(self.cuts, blocks or ()))
        self.streams = [
            stream_of(name if cut is None else (name, cut.coordinates))
            for name, cut in zip(self.names, self.cuts)
        ]
        self.momentum_dtype = momentum_dtype
        self.capturable = capturable
        self.norm_dtype = self.norm_dtype_for(params[0].dtype)
        self.divide_scales(scale_constant)

    @staticmethod
    def norm_dtype_for(dtype: torch.dtype) -> torch.dtype:
        """The dtype of norms and scales of parameters of ``dtype``."""
        return reference.norm_dtype(dtype)

    def divide_scales(self, constant: float | None) -> None:
        """Take ``constant`` as the set's ``scale_constant``."""
        self.coefficients = self.coefficients_for(constant)

    def coefficients_for(self, constant: float | None) -> Tensor | None:
        """What squared norms are multiplied with to give ``s_b``, (B,); None for plain SGD."""
        if self.blocks is None:
            return None
        numbers = [
            b.coefficient if b.kind == "plain" else b.coefficient / (constant or 1.0)
            for b in self.blocks
        ]
        return torch.tensor(numbers, dtype=self.norm_dtype, device=self.device)

    def sq_norms(self) -> Tensor:
        """``||W_b||_F^2`` of the stored weights, (B,); 1 where the scale has no norm in it.

        Writes that bump no version are not looked for here, only in steps.
        """
        assert self.blocks is not None
        weights = [p for p, block in zip(self.params, self.blocks) if block.uses_norm]
        norms = iter(self.weight_sq_norms(weights) if weights else ())
        one = torch.ones((), dtype=self.norm_dtype, device=self.device)
        return torch.stack([next(norms) if block.uses_norm else one for block in self.blocks])

    def weight_sq_norms(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """``||W||_F^2`` of each, 0-dim."""
        if torch.is_grad_enabled():  # differentiable: the graph keeps the weights of before
            weights = [weight.clone() for weight in weights]
        return [reference.sq_norm(weight) for weight in weights]

    def scales(self) -> Tensor | None:
        """``s_b = coefficients[b] * sq_norms[b]``, (B,), in the set's norm dtype; None for plain
        SGD."""
        return None if self.coefficients is None else self.coefficients * self.sq_norms()

    @abstractmethod
    def step(
        self,
        grads: Sequence[Tensor],
        buffers: Buffers,
        h: Hyperparameters,
        given: Modifiers = UNMODIFIED,
    ) -> Buffers:
        """Update the parameters and buffers in place; gradients are never written.

        Args:
            grads: a gradient per parameter, of its shape and device.
            buffers: a momentum buffer per parameter; None before its first step.
            h: the hyperparameters.
            given: scales, the gradient scaler's tensors and a seed, where there are any.

        Returns:
            The momentum buffers, new ones where there was None and momentum needs one.
        """

    def bump_wholes(self) -> None:
        """After a write to parts of DTensors, whose versions are others than their parts'."""
        if self.wholes is not self.params:
            increment_version([w for w, p in zip(self.wholes, self.params) if w is not p])

    def carry_norms(self, carries: bool) -> None:
        """Whether norms may be carried from one step to the next, where a backend does that."""
        if self.norms is not None:
            self.norms.carries = carries

    def invalidate_norms(self) -> None:
        """Forget norms that were carried over from the last step, if any were."""
        if self.norms is not None:
            self.norms.forget()

    def unseen(self) -> int | None:
        """The position of a weight of which a wrong norm was carried over, once it is found out."""
        return None


def stream_of(name: str | int | tuple[Any, ...]) -> int:
    """A parameter's stream of random bits, in [0, 2^62): a hash of its name, or of its position.

    Wherever it lies, in whichever group, set or optimizer, it has the draws of this name, so that
    no two parameters share them and a resumed run repeats them. Parts of one parameter have streams
    of their own, and replicas of a part the same.
    """
    return int.from_bytes(hashlib.blake2b(repr(name).encode(), digest_size=8).digest(), "big") >> 2


class FusedSet(StepSet):
    """Dense parameters, stepped by one kernel that leaves the norms for the next step."""

    norms: CarriedNorms

    def __init__(
        self, params: Sequence[Tensor], blocks: Sequence[Block] | None, **options: Any
    ) -> None:
        super().__init__(params, blocks, **options)
        self.uses_norm = [block.uses_norm for block in self.blocks or ()]
        self.norms = CarriedNorms(self.params, self.uses_norm, self.wholes)

    @staticmethod
    @abstractmethod
    def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
        """Why the backend can't step such parameters here; None if it can."""

    def in_memory_order(
        self, grads: Sequence[Tensor], buffers: Buffers, h: Hyperparameters
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients and buffers in their parameters' layouts, as a kernel walks them side by side.

        Buffers are zeros before the first step, and there are none where momentum is 0.
        """
        strides = [param.stride() for param in self.params]
        grads = laid_out(grads, self.params, strides)
        if h.momentum == 0:
            return grads, []
        dtype = self.momentum_dtype or self.params[0].dtype
        kept = [
            torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            if buffer is None
            # a kernel takes one dtype for all of them
            else (buffer if buffer.dtype is dtype else buffer.to(dtype))
            for param, buffer in zip(self.params, buffers, strict=True)
        ]
        return grads, laid_out(kept, self.params, strides)
