"""From parameter groups to sets: what one step touches, checked before anything changes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lhkernels import reference
from lhkernels.hyperparameters import Hyperparameters
from lhkernels.plan import Block
from lhkernels.step.base import Modifiers, StepSet
from lhkernels.step.dispatch import choose
from lhkernels.step.layout import is_dense

# What a set is built from; another value in the group makes another set.
SET_OPTIONS = (
    "amend",
    "fused",
    "foreach",
    "differentiable",
    "capturable",
    "momentum_dtype",
)

# What one set has in common: the group's position, device, dtype, gradients' dtype, dense memory,
# and whether it is the first step.
Part: TypeAlias = tuple[int, torch.device, torch.dtype, torch.dtype, bool, bool]

# The values of SET_OPTIONS that a set was built from, and the set.
Kept: TypeAlias = tuple[tuple[Any, ...], StepSet]


@dataclass(slots=True)
class Work:
    """What one step does to the parameters of one group, device and dtype."""

    params: StepSet
    grads: list[Tensor]
    h: Hyperparameters
    rounding_step: Tensor | None  # steps taken so far; the seed of stochastic rounding

    def run(
        self,
        state: MutableMapping[Tensor, dict[str, Any]],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Take the step and keep the momentum buffers in ``state``, under torch's key."""
        states = [state[p] for p in self.params.params] if self.h.momentum != 0 else []
        buffers = self.params.step(
            self.grads,
            [s.get("momentum_buffer") for s in states] or [None] * len(self.grads),
            self.h,
            Modifiers(
                grad_scale=_on(self.params.device, grad_scale),
                found_inf=_on(self.params.device, found_inf),
                seed=_on(self.params.device, self.rounding_step),
            ),
        )
        for s, buffer in zip(states, buffers):
            if buffer is not None:
                s["momentum_buffer"] = buffer


class StepSets:
    """The sets of one optimizer, kept while the same parameters have gradients."""

    def __init__(self) -> None:
        self._sets: dict[Part, Kept] = {}
        self._admitted: set[tuple[int, bool]] = set()

    def collect(
        self,
        groups: Sequence[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        block_of: Callable[[Tensor], Block],
    ) -> list[Work]:
        """Everything that has a gradient, in sets; hyperparameters and gradients are checked."""
        work = []
        kept, self._sets = self._sets, {}
        for index, group in enumerate(groups):
            h = Hyperparameters.of_group(group)
            parts: dict[Part, tuple[list[Tensor], list[Tensor]]] = {}
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                if grad.layout is not torch.strided:
                    raise RuntimeError(
                        f"the gradient of parameter {block_of(param).parameter!r} is sparse "
                        f"({grad.layout}); ScaleAmendedSGD needs dense ones: build its layer with "
                        "sparse=False, or give it to torch.optim.SGD"
                    )
                # The first buffer is not damped: parameters that have none are another set.
                first = h.dampening != 0 and state.get(param, {}).get("momentum_buffer") is None
                part = (index, param.device, param.dtype, grad.dtype, is_dense(param), first)
                if part not in parts:
                    parts[part] = ([], [])
                params, grads = parts[part]
                params.append(param)
                grads.append(grad)
            for part, (params, grads) in parts.items():
                self._sets[part] = self._keep_or_build(
                    kept.get(part), part, group, params, block_of
                )
                part_h = replace(h, dampening=0.0) if part[-1] else h
                seed = group["rounding_step"] if group["stochastic_rounding"] else None
                work.append(Work(self._sets[part][1], grads, part_h, seed))
        return work

    @staticmethod
    def _keep_or_build(
        kept: Kept | None,
        part: Part,
        group: dict[str, Any],
        params: list[Tensor],
        block_of: Callable[[Tensor], Block],
    ) -> Kept:
        """The options and set of the step before if it has these parameters, else new ones."""
        options = tuple(group[name] for name in SET_OPTIONS)
        if kept is not None and kept[0] == options:
            old = kept[1].params
            if len(old) == len(params) and all(map(operator.is_, old, params)):
                return kept
        for param in params:
            if hasattr(param, "to_local"):
                raise RuntimeError(
                    f"parameter {block_of(param).parameter!r} is a DTensor (FSDP2), whose norm "
                    "would have to be summed over ranks, which ScaleAmendedSGD does not do "
                    "yet; use DistributedDataParallel"
                )
        _, device, dtype, _, dense, _ = part
        new = choose(group, device, dtype, dense)(
            params,
            [block_of(param) for param in params] if group["amend"] else None,
            momentum_dtype=group["momentum_dtype"],
            capturable=group["capturable"],
        )
        if group["reference_scale"] is not None:
            new.set_reference(group["reference_scale"])
        return options, new

    def invalidate_norms(self) -> None:
        """Forget all norms carried over from the last step."""
        for _, params in self._sets.values():
            params.invalidate_norms()

    def fresh(self, work: Sequence[Work]) -> list[StepSet]:
        """The sets in which a parameter takes its first step."""
        return [w.params for w in work if not self._admitted.issuperset(w.params.ids)]

    def admit(self, fresh: Sequence[StepSet]) -> None:
        """Check the weights that take their first step; the host waits for their norms.

        Raises:
            ValueError: a norm is 0, so that the block would never move, or not finite.
            RuntimeError: a CUDA graph is being captured.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a parameter takes its first step while a CUDA graph is captured; call step() once "
                "with gradients before capturing"
            )
        for params in fresh:
            if params.blocks is None or params.device.type == "meta":
                continue
            range_of = torch.finfo(reference.norm_dtype(params.params[0].dtype))
            for param, block, sq_norm in zip(
                params.params, params.blocks, params.sq_norms().tolist()
            ):
                first = block.uses_norm and (id(param), True) not in self._admitted
                if first and not range_of.tiny <= sq_norm <= range_of.max:
                    why = "not finite" if not sq_norm < range_of.tiny else "too small to move by"
                    raise ValueError(
                        f"parameter {block.parameter!r} has squared norm {sq_norm} at its first "
                        f"step, which is {why}; initialise it with finite values that are not all "
                        "0, put it into a group with amend=False, or leave it out of the plan"
                    )
        for params in fresh:
            self._admitted |= params.ids


def _on(device: torch.device, scalar: Tensor | None) -> Tensor | None:
    return None if scalar is None else scalar.to(device, non_blocking=True)
