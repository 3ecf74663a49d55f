"""Bytes that an optimizer's step reads and writes, counted operation by operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ONE_PASS = 5  # read W, gradient and momentum; write W and momentum
FUSED = ("_fused_sgd_", "lhkernels::")  # their schemas name more than they touch
WRITE_ONLY = ("copy_", "zero_", "fill_", "_foreach_copy_", "_foreach_zero_")


class Traffic(TorchDispatchMode):
    """Sums, over the operations run inside, the bytes of operands read and of results written.

    Views and metadata cost nothing; caches are not modelled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.fused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        schema, name = func._schema, func._schema.name
        if any(word in name for word in FUSED):
            self.fused = True
            return out
        if func.is_view or not _compute(name):
            return out
        values = {a.name: v for a, v in zip(schema.arguments, args)} | (kwargs or {})
        for argument in schema.arguments:
            size = sum(t.nbytes for t in _tensors(values.get(argument.name)))
            written = argument.alias_info is not None and argument.alias_info.is_write
            if not (written and name.removeprefix("aten::") in WRITE_ONLY):
                self.total += size
            self.total += size if written else 0
        for result, returned in zip(schema.returns, out if len(schema.returns) > 1 else (out,)):
            if result.alias_info is None:
                self.total += sum(t.nbytes for t in _tensors(returned))
        return out


def bytes_per_element(opt: torch.optim.Optimizer) -> float:
    """Bytes that one step reads and writes for an element of the parameters.

    A fused step is one pass by design and counts as such; every other one counts what its
    operations name.
    """
    params = [p for group in opt.param_groups for p in group["params"]]
    with Traffic() as traffic:
        opt.step()
    if traffic.fused or traffic.total == 0:  # a kernel that the dispatcher does not see
        return float(ONE_PASS * params[0].element_size())
    return traffic.total / sum(p.numel() for p in params)


def _compute(name: str) -> bool:
    return not any(word in name for word in ("empty", "detach", "alias", "_local_scalar", "sizes"))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
