"""A group's parameters with their gradients and buffers: sorted into what becomes sets, checked."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lhkernels.plan import Block
from lhkernels.step.base import StepSet
from lhkernels.step.cuts import any_dtensors, part_here, part_like
from lhkernels.step.layout import has_own_memory, is_dense

# What a set is built from; another value in the group makes another set.
SET_OPTIONS = ("amend", "fused", "foreach", "differentiable", "capturable", "momentum_dtype")

REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


class Part(NamedTuple):
    """What the parameters of one set have in common."""

    group: int
    device: torch.device
    dtype: torch.dtype
    grad_dtype: torch.dtype
    dense: bool
    first: bool  # no buffer yet, and dampening, which the first one does not get


class Members(NamedTuple):
    """Parameters, their gradients, their momentum buffers (None where there is none yet).

    Of DTensors these are the parts that lie here; ``wholes`` are the parameters as the optimizer
    has them.
    """

    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[Tensor | None]
    wholes: list[Tensor]


@dataclass(slots=True)
class Kept:
    """A set, and what it was built from: a parameter may be given other data at any time."""

    set: StepSet
    options: list[Any]  # the values of SET_OPTIONS
    looks: tuple[list[Any], ...]  # the parameters' shapes, strides and dtypes
    addresses: list[int]  # of the parameters
    own_memory: bool

    @classmethod
    def of(cls, new: StepSet, group: Mapping[str, Any]) -> Kept:
        """A set that has just been built."""
        params = new.params
        options = [group[name] for name in SET_OPTIONS]
        return cls(new, options, _looks(params), _addresses(new), has_own_memory(params))

    def still_has(self, group: Mapping[str, Any], params: list[Tensor]) -> bool:
        """Whether the set has these parameters as they are now, and these options."""
        if [group[name] for name in SET_OPTIONS] != self.options:
            return False
        if len(params) != len(self.set.params):
            return False
        if not all(map(operator.is_, self.set.params, params)) or _looks(params) != self.looks:
            return False
        addresses = _addresses(self.set)
        if addresses != self.addresses:
            if has_own_memory(params) != self.own_memory:
                return False
            self.addresses = addresses
        return True


def gather(
    group: Mapping[str, Any], state: Mapping[Tensor, dict[str, Any]], has_buffers: bool
) -> Members:
    """The group's parameters that have gradients."""
    pairs = [(param, grad) for param in group["params"] if (grad := param.grad) is not None]
    wholes, grads = [param for param, _ in pairs], [grad for _, grad in pairs]
    buffers: list[Tensor | None] = [None] * len(wholes)
    if has_buffers:
        known = map(state.get, wholes)
        buffers = [own.get("momentum_buffer") if own else None for own in known]
    if not any_dtensors(wholes):
        return Members(wholes, grads, buffers, wholes)
    with torch.no_grad():
        grads = [part_like(grad, param) for grad, param in zip(grads, wholes)]
        buffers = [b if b is None else part_like(b, param) for b, param in zip(buffers, wholes)]
    return Members([part_here(param) for param in wholes], grads, buffers, wholes)


def sort(
    index: int,
    group: Mapping[str, Any],
    members: Members,
    damped: bool,
    before: Mapping[Part, Kept],
) -> list[tuple[Part, Members, Kept | None]]:
    """The members of group ``index`` by what a set has in common, with their sets if they have one.

    Most steps are like the one before, and most groups are one set: that is looked at first, list
    by list, as this is what a step on many small tensors spends its time on.
    """
    alone = [part for part in before if part.group == index]
    if len(alone) == 1:
        part, kept = alone[0], before[alone[0]]
        same_grads = [g.dtype for g in members.grads].count(part.grad_dtype) == len(members.grads)
        first = [damped and buffer is None for buffer in members.buffers]
        same_buffers = first.count(part.first) == len(first)
        if same_grads and same_buffers and kept.still_has(group, members.params):
            return [(part, members, kept)]
    parts: dict[Part, Members] = {}
    for param, grad, buffer, whole in zip(*members):
        first_step = damped and buffer is None
        part = Part(index, param.device, param.dtype, grad.dtype, is_dense(param), first_step)
        some = parts.setdefault(part, Members([], [], [], []))
        some.params.append(param)
        some.grads.append(grad)
        some.buffers.append(buffer)
        some.wholes.append(whole)
    found = []
    for part, some in parts.items():
        known = before.get(part)
        fits = known is not None and known.still_has(group, some.params)
        found.append((part, some, known if fits else None))
    return found


def check(part: Part, members: Members, block_of: Callable[[Tensor], Block]) -> None:
    """Raise a RuntimeError for a gradient or buffer that does not fit its parameter."""
    shapes = [param.shape for param in members.params]
    known = COMPLEX if part.dtype.is_complex else REAL
    if part.grad_dtype not in known or not _fit(members.grads, shapes, part.device):
        _refuse("gradient", members.grads, members, block_of)
    if not _fit(members.buffers, shapes, part.device):
        _refuse("momentum buffer", members.buffers, members, block_of)


def _fit(
    tensors: Sequence[Tensor | None], shapes: Sequence[torch.Size], device: torch.device
) -> bool:
    """Whether gradients or buffers can be walked beside parameters of these shapes."""
    there = [tensor for tensor in tensors if tensor is not None]
    if len(there) < len(tensors):
        shapes = [shape for shape, tensor in zip(shapes, tensors) if tensor is not None]
    return (
        [tensor.shape for tensor in there] == shapes
        and [tensor.layout for tensor in there].count(torch.strided) == len(there)
        and [tensor.device for tensor in there].count(device) == len(there)
    )


def _refuse(
    what: str,
    tensors: Sequence[Tensor | None],
    members: Members,
    block_of: Callable[[Tensor], Block],
) -> NoReturn:
    """Raise for the first that does not fit."""
    rows = [row for row in zip(tensors, members.params, members.wholes) if row[0] is not None]
    bad = (row for row in rows if not _fit([row[0]], [row[1].shape], row[1].device))
    tensor, param, whole = next(bad, rows[0])
    assert tensor is not None
    name = block_of(whole).parameter
    if tensor.layout is not torch.strided:
        raise RuntimeError(
            f"the {what} of parameter {name!r} is sparse ({tensor.layout}); ScaleAmendedSGD needs "
            "dense ones: build its layer with sparse=False, or give it to torch.optim.SGD"
        )
    shown = [f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (tensor, param)]
    raise RuntimeError(
        f"the {what} of parameter {name!r} is {shown[0]}, but the parameter is {shown[1]}; after "
        "moving or replacing it, clear its gradient (opt.zero_grad()) and its state "
        "(del opt.state[param]), or move them along"
    )


def _looks(params: list[Tensor]) -> tuple[list[Any], ...]:
    return (
        [param.shape for param in params],
        [param.stride() for param in params],
        [param.dtype for param in params],
    )


def _addresses(of: StepSet) -> list[int]:
    return [param.data_ptr() for param in of.params] if of.has_values else []
