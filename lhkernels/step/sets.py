"""From parameter groups to sets: what one step touches, checked before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lhkernels import reference
from lhkernels.hyperparameters import Hyperparameters, check_flags
from lhkernels.plan import Block
from lhkernels.step.base import Buffers, Modifiers, StepSet
from lhkernels.step.dispatch import choose
from lhkernels.step.layout import has_own_memory
from lhkernels.step.members import Kept, Part, check, gather, sort
from lhkernels.step.norms import warn_of_unseen_write


@dataclass(slots=True)
class Work:
    """What one step does to the parameters of one group, device and dtype."""

    set: StepSet
    grads: list[Tensor]
    buffers: Buffers  # None where there is none yet
    h: Hyperparameters
    rounding_step: Tensor | None  # steps taken so far; the seed of stochastic rounding
    scale_constant: float | None = None  # for a step that does not move: it fixes none

    @property
    def makes_buffers(self) -> bool:
        return self.h.momentum != 0 and any(buffer is None for buffer in self.buffers)

    @property
    def moves(self) -> bool:
        """Whether weights may change: not where lr is 0, as the host can tell without waiting."""
        lr = self.h.lr
        return isinstance(lr, Tensor) or lr != 0 or torch.is_grad_enabled()

    def run(
        self,
        state: MutableMapping[Tensor, dict[str, Any]],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Take the step and keep the momentum buffers in ``state``, under torch's key."""
        given = Modifiers(
            grad_scale=_on(self.set.device, grad_scale),
            found_inf=_on(self.set.device, found_inf),
            seed=_on(self.set.device, self.rounding_step),
        )
        if self.set.admitted:
            buffers = self.set.step(self.grads, self.buffers, self.h, given)
        else:
            buffers = self._without_moving(given._replace(seed=None))
        for param, old, new in zip(self.set.params, self.buffers, buffers):
            if new is not old and new is not None:
                state[param]["momentum_buffer"] = new

    def _without_moving(self, given: Modifiers) -> Buffers:
        """A step with lr 0, of weights that may be anything yet: their buffers alone.

        torch.distributed.checkpoint takes one to make the state that it then loads, maybe before
        it loads the weights.
        """
        copies = type(self.set)(
            [param.clone() for param in self.set.params],
            self.set.blocks,
            momentum_dtype=self.set.momentum_dtype,
            scale_constant=self.scale_constant,
        )
        scales = copies.scales()
        if scales is not None:
            scales = scales.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return copies.step(self.grads, self.buffers, self.h, given._replace(scales=scales))


class StepSets:
    """The sets of one optimizer, kept while the same parameters have gradients."""

    def __init__(self, carries: bool = True) -> None:
        self._sets: dict[Part, Kept] = {}
        self.carries = carries  # norms, from step to step
        # parameters that have taken their first step, and whether they were amended in one
        self._admitted: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def collect(
        self,
        groups: Sequence[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        block_of: Callable[[Tensor], Block],
    ) -> list[Work]:
        """Everything that has a gradient, in sets; whatever could fail in a step is checked here.

        Raises:
            ValueError: an option that :class:`Hyperparameters` or :func:`check_flags` refuse.
            RuntimeError: gradients or buffers that do not fit, or a set that no backend can step.
        """
        work = []
        before, self._sets = self._sets, {}
        for index, group in enumerate(groups):
            h = Hyperparameters.of_group(group)
            check_flags(group)
            seed = group["rounding_step"] if group["stochastic_rounding"] else None
            members = gather(group, state, has_buffers=h.momentum != 0)
            for part, some, kept in sort(index, group, members, h.dampening != 0, before):
                check(part, some, block_of)
                kept = kept or Kept.of(build(part, group, some.params, block_of), group)
                self._sets[part] = kept
                kept.set.carry_norms(self.carries)
                damped = replace(h, dampening=0.0) if part.first else h
                work.append(Work(kept.set, some.grads, some.buffers, damped, seed))
        return work

    def invalidate_norms(self) -> None:
        """Forget all norms carried over from the last step."""
        self.carries = True
        for kept in self._sets.values():
            kept.set.invalidate_norms()

    def look_for_unseen_writes(self, work: Sequence[Work]) -> None:
        """Warn of the first that is found; then norms are carried no more, until
        :meth:`invalidate_norms`."""
        found = [(w.set, w.set.unseen()) for w in work] if self.carries else []
        names = [each.names[position] for each, position in found if position is not None]
        if names:
            self.carries = False
            warn_of_unseen_write(names[0])

    def fresh(self, work: Sequence[Work]) -> list[Work]:
        """Where a parameter takes its first step that moves."""
        for w in work:
            if not w.set.admitted:  # a new set, maybe of parameters known from others
                amended = w.set.blocks is not None
                known = [self._admitted.get(param) for param in w.set.params]
                w.set.admitted = all(was or (was is False and not amended) for was in known)
        return [w for w in work if not w.set.admitted]

    def admit(self, fresh: Sequence[Work]) -> None:
        """Check the weights that take their first step; the host waits for their norms.

        Weights that do not move, as lr is 0, are looked at when they do. Subclasses of Tensor with
        operations of their own are not looked at: FakeTensor has no values, others no one norm.

        Raises:
            ValueError: a norm is 0, so that the block would never move, or not finite.
            RuntimeError: a CUDA graph is being captured.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a parameter takes its first step while a CUDA graph is captured; call step() once "
                "with gradients and lr > 0 before capturing"
            )
        moving = [w.set for w in fresh if w.moves]
        for each in moving:
            if each.blocks is not None and each.has_values:
                self._check_norms(each, each.blocks)
        for each in moving:
            each.admitted = True
            for param in each.params:
                amended = each.blocks is not None or self._admitted.get(param, False)
                self._admitted[param] = amended

    def _check_norms(self, fresh: StepSet, blocks: Sequence[Block]) -> None:
        range_of = torch.finfo(reference.norm_dtype(fresh.params[0].dtype))
        for param, block, sq_norm in zip(fresh.params, blocks, fresh.sq_norms().tolist()):
            first = block.uses_norm and not self._admitted.get(param)
            if first and not range_of.tiny <= sq_norm <= range_of.max:
                why = "not finite" if not sq_norm < range_of.tiny else "too small to move by"
                raise ValueError(
                    f"parameter {block.parameter!r} has squared norm {sq_norm} at its first "
                    f"step, which is {why}; initialise it with finite values that are not all "
                    "0, put it into a group with amend=False, or make it plain in the plan: "
                    "Plan.chain(..., plain=[name])"
                )


def build(
    part: Part,
    group: Mapping[str, Any],
    params: list[Tensor],
    block_of: Callable[[Tensor], Block],
) -> StepSet:
    """A new set, of the backend that the group's options ask for."""
    blocks = [block_of(param) for param in params]
    for param, block in zip(params, blocks):
        if hasattr(param, "to_local"):
            raise RuntimeError(
                f"parameter {block.parameter!r} is a DTensor (FSDP2), whose norm would have to be "
                "summed over ranks, which ScaleAmendedSGD does not do yet; use "
                "DistributedDataParallel"
            )
    backend = choose(group, part.device, part.dtype, part.dense and has_own_memory(params))
    return backend(
        params,
        blocks if group["amend"] else None,
        names=[block.parameter for block in blocks],
        momentum_dtype=group["momentum_dtype"],
        capturable=group["capturable"],
        scale_constant=group["scale_constant"],
    )


def _on(device: torch.device, scalar: Tensor | None) -> Tensor | None:
    return None if scalar is None else scalar.to(device, non_blocking=True)
