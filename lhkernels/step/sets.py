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
from lhkernels.step.cuts import any_dtensors, whole_like
from lhkernels.step.dispatch import choose
from lhkernels.step.global_norms import GlobalNorms
from lhkernels.step.layout import has_own_memory
from lhkernels.step.members import Kept, Members, Part, check, gather, sort
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
    sq_norms: Tensor | None = None  # of whole parameters, where the set has parts of them

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
        if self.sq_norms is not None:
            given = given._replace(scales=self.scales())
        if self.set.admitted:
            buffers = self.set.step(self.grads, self.buffers, self.h, given)
        else:
            buffers = self._without_moving(given._replace(seed=None))
        for param, old, new in zip(self.set.wholes, self.buffers, buffers):
            if new is not old and new is not None:
                state[param]["momentum_buffer"] = whole_like(new, param)

    def norms(self) -> Tensor:
        """``||W_b||^2`` of the weights as they are now, (B,); of whole ones, where they are cut."""
        return self.set.sq_norms() if self.sq_norms is None else self.sq_norms

    def scales(self) -> Tensor | None:
        """``s_b``, (B,), from :meth:`norms`; None for plain SGD."""
        coefficients = self.set.coefficients
        return None if coefficients is None else coefficients * self.norms()

    def _without_moving(self, given: Modifiers) -> Buffers:
        """A step with lr 0, of weights that may be anything yet: their buffers alone.

        torch.distributed.checkpoint takes one to make the state that it then loads, maybe before
        it loads the weights. Of these, no more than one has a copy at a time.
        """
        coefficients = self.set.coefficients_for(self.scale_constant)
        scales: Sequence[Tensor | None] = [None] * len(self.grads)
        if coefficients is not None:
            sound = (coefficients * self.norms()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            scales = sound.split(1)
        buffers: list[Tensor | None] = []
        for param, grad, old, s in zip(self.set.params, self.grads, self.buffers, scales):
            one = type(self.set)([param.clone()], None, momentum_dtype=self.set.momentum_dtype)
            buffers += one.step([grad], [old], self.h, given._replace(scales=s))
        return buffers


class StepSets:
    """The sets of one optimizer, kept while the same parameters have gradients."""

    def __init__(self, carries: bool = True) -> None:
        self._sets: dict[Part, Kept] = {}
        self.carries = carries  # norms, from step to step
        # parameters that have taken their first step, and whether they were amended in one
        self._admitted: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._global = GlobalNorms()
        self._found: str | int | None = None  # an unseen write that the others do not know of yet

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
                kept = kept or Kept.of(build(part, group, some, block_of), group)
                self._sets[part] = kept
                kept.set.carry_norms(self.carries)
                damped = replace(h, dampening=0.0) if part.first else h
                work.append(Work(kept.set, some.grads, some.buffers, damped, seed))
        return work

    def sum_norms(self, work: Sequence[Work]) -> None:
        """Give sets with parts of parameters the norms of the whole ones, summed over the ranks."""
        cut = [w for w in work if w.set.is_cut]
        if cut:
            for w, norms in zip(cut, self._global.finish([w.set for w in cut])):
                w.sq_norms = norms
            if self._global.flagged():
                self._carry_no_more(self._found or "on another rank")

    def invalidate_norms(self) -> None:
        """Forget all norms carried over from the last step."""
        self.carries = True
        for kept in self._sets.values():
            kept.set.invalidate_norms()

    def end(self, work: Sequence[Work]) -> None:
        """Begin to sum norms for the next step, and look for writes that changed no version.

        Of the first that is found there is a warning; then norms are carried no more, until
        :meth:`invalidate_norms`.
        """
        found = [(w.set, w.set.unseen()) for w in work] if self.carries else []
        names = [each.names[position] for each, position in found if position is not None]
        cut = [w.set for w in work if w.set.is_cut]
        if cut and self.carries and all(each.norms is not None for each in cut):
            self._global.start(cut, flag=bool(names))
            self._found = names[0] if names else None  # all ranks hear of it at the next step
        elif names:
            self._carry_no_more(names[0])

    def _carry_no_more(self, name: str | int) -> None:
        self.carries = False
        for kept in self._sets.values():
            kept.set.carry_norms(False)
        warn_of_unseen_write(name)

    def fresh(self, work: Sequence[Work]) -> list[Work]:
        """Where a parameter takes its first step that moves."""
        for w in work:
            if not w.set.admitted:  # a new set, maybe of parameters known from others
                amended = w.set.blocks is not None
                known = [self._admitted.get(param) for param in w.set.wholes]
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
        moving = [w for w in fresh if w.moves]
        for w in moving:
            if w.set.blocks is not None and w.set.has_values:
                self._check_norms(w, w.set.blocks)
        for w in moving:
            w.set.admitted = True
            for param in w.set.wholes:
                amended = w.set.blocks is not None or self._admitted.get(param, False)
                self._admitted[param] = amended

    def _check_norms(self, fresh: Work, blocks: Sequence[Block]) -> None:
        range_of = torch.finfo(reference.norm_dtype(fresh.set.params[0].dtype))
        for param, block, sq_norm in zip(fresh.set.wholes, blocks, fresh.norms().tolist()):
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
    members: Members,
    block_of: Callable[[Tensor], Block],
) -> StepSet:
    """A new set, of the backend that the group's options ask for."""
    blocks = [block_of(param) for param in members.wholes]
    if group["differentiable"] and any_dtensors(members.wholes):
        raise RuntimeError(
            "differentiable=True, but the group has parameters cut over ranks (DTensor), of which "
            "a step keeps no graph; pass differentiable=False"
        )
    own_memory = has_own_memory(members.params)
    backend = choose(group, part.device, part.dtype, part.dense and own_memory)
    return backend(
        members.params,
        blocks if group["amend"] else None,
        wholes=None if members.wholes is members.params else members.wholes,
        names=[block.parameter for block in blocks],
        momentum_dtype=group["momentum_dtype"],
        capturable=group["capturable"],
        scale_constant=group["scale_constant"],
    )


def _on(device: torch.device, scalar: Tensor | None) -> Tensor | None:
    return None if scalar is None else scalar.to(device, non_blocking=True)
