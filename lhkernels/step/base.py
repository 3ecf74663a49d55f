"""What every backend offers: the parameters of one group, device and dtype, stepped together."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lhkernels import reference
from lhkernels.hyperparameters import Hyperparameters
from lhkernels.plan import Block
from lhkernels.step.layout import is_plain

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
    """B parameters of one device and dtype, and the rule for their factors.

    Between norms and factors there is a seam: :meth:`sq_norms` may be read, combined with those of
    other sets or ranks, and the factors given to :meth:`step` as ``Modifiers(scales=...)``. Without
    these the set makes them from its own norms, ``s_b = coefficients[b] * sq_norms[b]``.

    Args:
        params: dense tensors.
        blocks: their places in the plan; None for plain SGD.
        names: of the parameters, or their positions in the optimizer; default: those in the set.
        momentum_dtype: of the momentum buffers; None for the parameters' own.
        capturable: the step may be captured in a CUDA graph.
    """

    name: str

    def __init__(
        self,
        params: Sequence[Tensor],
        blocks: Sequence[Block] | None,
        *,
        names: Sequence[str | int] | None = None,
        momentum_dtype: torch.dtype | None = None,
        capturable: bool = False,
    ) -> None:
        if momentum_dtype is not None and params[0].is_complex():
            raise ValueError(
                f"momentum_dtype={momentum_dtype} is real, but a parameter of the group has "
                f"{params[0].dtype}; put it into a group with momentum_dtype=None"
            )
        self.params = list(params)
        self.has_values = params[0].device.type != "meta" and all(map(is_plain, params))
        self.admitted = False  # whether all of them have passed the check of the first step
        self.device = params[0].device
        self.blocks = blocks
        self.names = list(range(len(self.params)) if names is None else names)
        self.streams = [stream_of(name) for name in self.names]
        self.momentum_dtype = momentum_dtype
        self.capturable = capturable
        self.norm_dtype = self.norm_dtype_for(params[0].dtype)
        self.set_reference(1.0)

    @staticmethod
    def norm_dtype_for(dtype: torch.dtype) -> torch.dtype:
        """The dtype of norms and factors of parameters of ``dtype``."""
        return reference.norm_dtype(dtype)

    def set_reference(self, reference_scale: float) -> None:
        """Divide the factors of all blocks (but not of plain parameters) by one constant."""
        self.coefficients: Tensor | None = None
        if self.blocks is not None:
            self.coefficients = torch.tensor(
                [
                    b.coefficient if b.kind == "plain" else b.coefficient / reference_scale
                    for b in self.blocks
                ],
                dtype=self.norm_dtype,
                device=self.device,
            )

    def sq_norms(self) -> Tensor:
        """``||W_b||_F^2`` of the stored weights, (B,); 1 where the factor has no norm in it.

        Writes that bump no version are not looked for here, only in steps.
        """
        assert self.blocks is not None
        weights = [p for p, block in zip(self.params, self.blocks) if block.uses_norm]
        norms = iter(self.weight_sq_norms(weights) if weights else ())
        one = torch.ones((), dtype=self.norm_dtype, device=self.device)
        return torch.stack([next(norms) if block.uses_norm else one for block in self.blocks])

    def invalidate_norms(self) -> None:
        """Forget norms that were carried over from the last step, if any were."""
        return

    def unseen(self) -> int | None:
        """The position of a weight of which a wrong norm was carried over, once it is found out."""
        return None

    def weight_sq_norms(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """``||W||_F^2`` of each, 0-dim."""
        if torch.is_grad_enabled():  # differentiable: the graph keeps the weights of before
            weights = [weight.clone() for weight in weights]
        return [reference.sq_norm(weight) for weight in weights]

    def scales(self) -> Tensor | None:
        """``s_b``, (B,), from the set's own norms; None for plain SGD."""
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
            given: factors, the gradient scaler's tensors and a seed, where there are any.

        Returns:
            The momentum buffers, new ones where there was None and momentum needs one.
        """


def stream_of(name: str | int) -> int:
    """A parameter's stream of random bits, in [0, 2^62): a hash of its name, or of its position.

    Wherever it lies, in whichever group, set or optimizer, it has the draws of this name, so that
    no two parameters share them and a resumed run repeats them.
    """
    return int.from_bytes(hashlib.blake2b(repr(name).encode(), digest_size=8).digest(), "big") >> 2


class PlainTorchSet(StepSet):
    """A set stepped by PyTorch's own operations; the host reads ``found_inf``, if there is one."""

    def step(
        self,
        grads: Sequence[Tensor],
        buffers: Buffers,
        h: Hyperparameters,
        given: Modifiers = UNMODIFIED,
    ) -> Buffers:
        if given.found_inf is not None and given.found_inf.item() != 0:
            return buffers
        if given.grad_scale is not None:  # widened first: float16 would lose what is unscaled
            grads = [
                grad.to(torch.promote_types(grad.dtype, torch.float32)) / given.grad_scale
                for grad in grads
            ]
        rounding = None
        if given.seed is not None:
            rounding = [
                torch.Generator(self.device).manual_seed(stream ^ int(given.seed))
                for stream in self.streams
            ]
        scales = self.scales() if given.scales is None else given.scales
        return self.update(grads, buffers, h, scales, rounding)

    @abstractmethod
    def update(
        self,
        grads: Sequence[Tensor],
        buffers: Buffers,
        h: Hyperparameters,
        scales: Tensor | None,
        rounding: Sequence[torch.Generator] | None,
    ) -> Buffers:
        """The step proper, of unscaled gradients; ``rounding``, one for each parameter, draws for
        stochastic rounding."""


class ReferenceSet(PlainTorchSet):
    """The specification, a parameter at a time."""

    name = "reference"

    def update(
        self,
        grads: Sequence[Tensor],
        buffers: Buffers,
        h: Hyperparameters,
        scales: Tensor | None,
        rounding: Sequence[torch.Generator] | None,
    ) -> Buffers:
        if torch.is_grad_enabled():  # differentiable: what the graph has saved is not overwritten
            buffers = [None if buffer is None else buffer.clone() for buffer in buffers]
        nothing = [None] * len(self.params)
        each = nothing if scales is None else scales.unbind()
        return [
            reference.step(param, grad, buffer, scale, h, self.momentum_dtype, draws)
            for param, grad, buffer, scale, draws in zip(
                self.params, grads, buffers, each, rounding or nothing, strict=True
            )
        ]
