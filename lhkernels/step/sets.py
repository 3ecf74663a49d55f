"""From parameter groups to sets: what one step touches, checked before anything changes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lhkernels import reference
from lhkernels.hyperparameters import Hyperparameters, as_scalar, check_flags
from lhkernels.plan import Block
from lhkernels.step.base import Buffers, Modifiers, StepSet
from lhkernels.step.dispatch import choose
from lhkernels.step.fused import FusedSet, warn_of_unseen_write
from lhkernels.step.layout import has_own_memory, is_dense

# What a set is built from; another value in the group makes another set.
SET_OPTIONS = (
    "amend",
    "fused",
    "foreach",
    "differentiable",
    "capturable",
    "momentum_dtype",
)

REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)

# What one set has in common: the group's position, device, dtype, gradients' dtype, dense memory,
# and whether it is the first step.
Part: TypeAlias = tuple[int, torch.device, torch.dtype, torch.dtype, bool, bool]


@dataclass(slots=True)
class Kept:
    """A set, and what it was built from: a parameter may be given other data at any time."""

    params: StepSet
    origin: tuple[Any, ...]  # the values of SET_OPTIONS, the parameters' shapes and strides
    addresses: list[int]  # of the parameters
    own_memory: bool


@dataclass(slots=True)
class Work:
    """What one step does to the parameters of one group, device and dtype."""

    params: StepSet
    grads: list[Tensor]
    buffers: Buffers  # None where there is none yet
    h: Hyperparameters
    rounding_step: Tensor | None  # steps taken so far; the seed of stochastic rounding
    constant: float | None = None  # of scale_reference="initial", in a step that does not move

    @property
    def makes_buffers(self) -> bool:
        return self.h.momentum != 0 and any(buffer is None for buffer in self.buffers)

    @property
    def moves(self) -> bool:
        """Whether weights may change: not where lr is 0, as the host can tell without waiting."""
        lr = as_scalar(self.h.lr)
        return isinstance(lr, Tensor) or lr != 0 or torch.is_grad_enabled()

    def run(
        self,
        state: MutableMapping[Tensor, dict[str, Any]],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Take the step and keep the momentum buffers in ``state``, under torch's key."""
        given = Modifiers(
            grad_scale=_on(self.params.device, grad_scale),
            found_inf=_on(self.params.device, found_inf),
            seed=_on(self.params.device, self.rounding_step),
        )
        if self.params.admitted:
            buffers = self.params.step(self.grads, self.buffers, self.h, given)
        else:
            buffers = self._without_moving(given._replace(seed=None))
        for param, old, new in zip(self.params.params, self.buffers, buffers):
            if new is not old and new is not None:
                state[param]["momentum_buffer"] = new

    def _without_moving(self, given: Modifiers) -> Buffers:
        """A step with lr 0, of weights that may be anything yet: their buffers alone.

        torch.distributed.checkpoint takes one to make the state that it then loads, maybe before
        it loads the weights.
        """
        params = self.params
        copies = type(params)(
            [param.clone() for param in params.params],
            params.blocks,
            momentum_dtype=params.momentum_dtype,
        )
        copies.set_reference(self.constant or 1.0)
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
        kept, self._sets = self._sets, {}
        for index, group in enumerate(groups):
            h = Hyperparameters.of_group(group)
            check_flags(group)
            damped, has_buffers = h.dampening != 0, h.momentum != 0
            parts: dict[Part, tuple[list[Tensor], list[Tensor], list[Tensor | None]]] = {}
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                own = state.get(param) if has_buffers else None
                buffer = own.get("momentum_buffer") if own else None
                # The first buffer is not damped: parameters that have none are another set.
                first = damped and buffer is None
                part = (index, param.device, param.dtype, grad.dtype, is_dense(param), first)
                members = parts.get(part)
                if members is None:
                    members = parts[part] = ([], [], [])
                members[0].append(param)
                members[1].append(grad)
                members[2].append(buffer)
            for part, (params, grads, buffers) in parts.items():
                shapes = [param.shape for param in params]
                for what, tensors in (("gradient", grads), ("momentum buffer", buffers)):
                    if not _fit(tensors, shapes, part[1]):
                        _refuse(what, tensors, params, block_of)
                if part[3] not in (COMPLEX if part[2].is_complex else REAL):
                    _refuse("gradient", grads, params, block_of)
                self._sets[part] = self._keep_or_build(
                    kept.get(part), part, group, params, shapes, block_of
                )
                part_h = replace(h, dampening=0.0) if part[-1] else h
                seed = group["rounding_step"] if group["stochastic_rounding"] else None
                params_set = self._sets[part].params
                if isinstance(params_set, FusedSet):
                    params_set.carries = self.carries
                work.append(Work(params_set, grads, buffers, part_h, seed))
        return work

    @staticmethod
    def _keep_or_build(
        kept: Kept | None,
        part: Part,
        group: dict[str, Any],
        params: list[Tensor],
        shapes: list[torch.Size],
        block_of: Callable[[Tensor], Block],
    ) -> Kept:
        """The set of the step before if it has these parameters as they are, else a new one."""
        origin = (
            *(group[name] for name in SET_OPTIONS),
            shapes,
            [param.stride() for param in params],
        )
        if kept is not None and kept.origin == origin:
            known = kept.params
            if all(map(operator.is_, known.params, params)):
                addresses = [param.data_ptr() for param in params] if known.has_values else []
                if addresses == kept.addresses or has_own_memory(params) == kept.own_memory:
                    kept.addresses = addresses
                    return kept
        for param in params:
            if hasattr(param, "to_local"):
                raise RuntimeError(
                    f"parameter {block_of(param).parameter!r} is a DTensor (FSDP2), whose norm "
                    "would have to be summed over ranks, which ScaleAmendedSGD does not do "
                    "yet; use DistributedDataParallel"
                )
        _, device, dtype, _, dense, _ = part
        blocks = [block_of(param) for param in params]
        own_memory = has_own_memory(params)
        new = choose(group, device, dtype, dense and own_memory)(
            params,
            blocks if group["amend"] else None,
            names=[block.parameter for block in blocks],
            momentum_dtype=group["momentum_dtype"],
            capturable=group["capturable"],
        )
        if group["reference_scale"] is not None:
            new.set_reference(group["reference_scale"])
        addresses = [param.data_ptr() for param in params] if new.has_values else []
        return Kept(new, origin, addresses, own_memory)

    def invalidate_norms(self) -> None:
        """Forget all norms carried over from the last step."""
        self.carries = True
        for kept in self._sets.values():
            kept.params.invalidate_norms()

    def look_for_unseen_writes(self, work: Sequence[Work]) -> None:
        """Warn of the first that is found; then norms are carried no more, until
        :meth:`invalidate_norms`."""
        found = [(w.params, w.params.unseen()) for w in work] if self.carries else []
        names = [params.names[position] for params, position in found if position is not None]
        if names:
            self.carries = False
            warn_of_unseen_write(names[0])

    def fresh(self, work: Sequence[Work]) -> list[Work]:
        """Where a parameter takes its first step that moves."""
        for w in work:
            if not w.params.admitted:  # a new set, maybe of parameters known from others
                amended = w.params.blocks is not None
                known = [self._admitted.get(param) for param in w.params.params]
                w.params.admitted = all(was or (was is False and not amended) for was in known)
        return [w for w in work if not w.params.admitted]

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
        moving = [w.params for w in fresh if w.moves]
        for params in moving:
            if params.blocks is not None and params.has_values:
                self._check_norms(params, params.blocks)
        for params in moving:
            params.admitted = True
            for param in params.params:
                amended = params.blocks is not None or self._admitted.get(param, False)
                self._admitted[param] = amended

    def _check_norms(self, params: StepSet, blocks: Sequence[Block]) -> None:
        range_of = torch.finfo(reference.norm_dtype(params.params[0].dtype))
        for param, block, sq_norm in zip(params.params, blocks, params.sq_norms().tolist()):
            first = block.uses_norm and not self._admitted.get(param)
            if first and not range_of.tiny <= sq_norm <= range_of.max:
                why = "not finite" if not sq_norm < range_of.tiny else "too small to move by"
                raise ValueError(
                    f"parameter {block.parameter!r} has squared norm {sq_norm} at its first "
                    f"step, which is {why}; initialise it with finite values that are not all "
                    "0, put it into a group with amend=False, or make it plain in the plan: "
                    "Plan.chain(..., plain=[name])"
                )


def _fit(
    tensors: Sequence[Tensor | None], shapes: Sequence[torch.Size], device: torch.device
) -> bool:
    """Whether gradients or buffers can be walked beside parameters of these shapes."""
    there = [tensor for tensor in tensors if tensor is not None]
    if len(there) < len(tensors):
        shapes = [shape for shape, tensor in zip(shapes, tensors) if tensor is not None]
    return (
        [tensor.shape for tensor in there] == shapes
        and not [tensor for tensor in there if tensor.layout is not torch.strided]
        and not [tensor for tensor in there if tensor.device != device]
    )


def _refuse(
    what: str,
    tensors: Sequence[Tensor | None],
    params: Sequence[Tensor],
    block_of: Callable[[Tensor], Block],
) -> NoReturn:
    """Raise for the first gradient or buffer that does not fit its parameter."""
    pairs = [(t, p) for t, p in zip(tensors, params) if t is not None]
    tensor, param = next(((t, p) for t, p in pairs if not _fit([t], [p.shape], p.device)), pairs[0])
    name = block_of(param).parameter
    if tensor.layout is not torch.strided:
        raise RuntimeError(
            f"the {what} of parameter {name!r} is sparse ({tensor.layout}); ScaleAmendedSGD needs "
            "dense ones: build its layer with sparse=False, or give it to torch.optim.SGD"
        )
    raise RuntimeError(
        f"the {what} of parameter {name!r} is {_looks(tensor)}, but the parameter is "
        f"{_looks(param)}; after moving or replacing it, clear its gradient "
        "(opt.zero_grad()) and its state (del opt.state[param]), or move them along"
    )


def _looks(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _on(device: torch.device, scalar: Tensor | None) -> Tensor | None:
    return None if scalar is None else scalar.to(device, non_blocking=True)
