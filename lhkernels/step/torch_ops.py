"""The step by PyTorch's own operations, a tensor at a time (the reference) or ``torch._foreach_*``.

The latter takes few launches on devices that torch has such kernels for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lhkernels import reference
from lhkernels.hyperparameters import Hyperparameters
from lhkernels.reference import decay, needs_rounding, round_stochastically
from lhkernels.step.base import UNMODIFIED, Buffers, Modifiers, StepSet


class TorchSet(StepSet):
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
        new = self.update(grads, buffers, h, scales, rounding)
        self.bump_wholes()
        return new

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


class ReferenceSet(TorchSet):
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


class ForeachSet(TorchSet):
    """Multi-tensor operations of torch; the numbers of :func:`lhkernels.reference.step`."""

    name = "foreach"

    def weight_sq_norms(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        real = [torch.view_as_real(w) if w.is_complex() else w for w in weights]
        return torch._foreach_pow(torch._foreach_norm(real, 2, dtype=self.norm_dtype), 2)

    def update(
        self,
        grads: Sequence[Tensor],
        buffers: Buffers,
        h: Hyperparameters,
        scales: Tensor | None,
        rounding: Sequence[torch.Generator] | None,
    ) -> Buffers:
        amended = scales is not None
        if not needs_rounding(
            self.params[0], grads, amended, self.momentum_dtype, rounding is not None
        ):
            return _update(self.params, list(grads), buffers, scales, h)
        dtype = self.params[0].dtype
        working, stored = torch.promote_types(dtype, self.norm_dtype), self.momentum_dtype or dtype
        params = [param.to(working, copy=True) for param in self.params]
        wide = [None if buffer is None else buffer.to(working, copy=True) for buffer in buffers]
        new = _update(params, [grad.to(working) for grad in grads], wide, scales, h)
        if rounding is not None:
            params = [
                round_stochastically(*each) for each in zip(params, [dtype] * len(params), rounding)
            ]
        torch._foreach_copy_(self.params, params)
        return [
            result if result is None else (result.to(stored) if old is None else old.copy_(result))
            for old, result in zip(buffers, new)
        ]


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: Buffers,
    scales: Tensor | None,
    h: Hyperparameters,
) -> Buffers:
    """:func:`lhkernels.reference.update` over lists: the same operations in the same order."""
    lr, weight_decay = h.lr, h.weight_decay
    d = list(torch._foreach_neg(grads)) if h.maximize else grads
    if isinstance(weight_decay, Tensor):
        d = list(torch._foreach_add(d, [decay(param, weight_decay) for param in params]))
    elif weight_decay != 0:
        d = list(torch._foreach_add(d, params, alpha=weight_decay))
    if scales is not None:
        d = list(torch._foreach_mul(d, scales.unbind()))
    if h.momentum != 0:
        old = [buffer for buffer in buffers if buffer is not None]
        if old:
            added = [x for x, buffer in zip(d, buffers) if buffer is not None]
            torch._foreach_mul_(old, h.momentum)
            torch._foreach_add_(old, added, alpha=1 - h.dampening)
        new = [x.clone() if buffer is None else buffer for x, buffer in zip(d, buffers)]
        d = list(torch._foreach_add(d, new, alpha=h.momentum)) if h.nesterov else new
        buffers = new
    if isinstance(lr, Tensor):
        d, lr = list(torch._foreach_mul(d, lr)), 1.0
    torch._foreach_add_(params, d, alpha=-lr)
    return buffers
