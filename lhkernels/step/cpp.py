"""The fused step on CPU tensors, in C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lhkernels import _extension, ops
from lhkernels.hyperparameters import Hyperparameters, as_scalar
from lhkernels.plan import Block
from lhkernels.step.base import Modifiers
from lhkernels.step.fused import FusedSet

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)


class CppSet(FusedSet):
    """One pass over all parameters, by ``lhkernels::sgd_step_``; norms and factors in float64."""

    name = "cpp"

    def __init__(
        self, params: Sequence[Tensor], blocks: Sequence[Block] | None, **options: Any
    ) -> None:
        super().__init__(params, blocks, **options)
        self._norms = self._samples = None
        if blocks is not None:
            self._norms = torch.ones(len(params), dtype=torch.float64)
            self._samples = torch.zeros(len(params), dtype=torch.int64)
        self._uses_norm = torch.tensor(self.uses_norm)
        self._streams = torch.tensor(self.streams)
        self._unseen = torch.zeros(1, dtype=torch.int64)  # 1 + a position

    @staticmethod
    def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
        if device_type != "cpu":
            return f"the C++ step is for CPU tensors, not {device_type}"
        if dtype not in DTYPES:
            return f"the C++ step has no {dtype}"
        return _extension.reason()

    @staticmethod
    def norm_dtype_for(dtype: torch.dtype) -> torch.dtype:
        return torch.float64

    def sq_norms(self) -> Tensor:
        assert self._norms is not None
        self._refresh(self.stale())
        self.mark()
        return self._norms.clone()

    def _refresh(self, stale: list[int]) -> None:
        if stale:
            assert self._norms is not None
            assert self._samples is not None
            views = self.views
            weights = [views[i].detach() for i in stale]
            self._norms[stale] = ops.sq_norms(weights)
            self._samples[stale] = ops.samples(weights)

    def unseen(self) -> int | None:
        found = int(self._unseen)
        if found == 0:
            return None
        self._unseen.zero_()
        return found - 1

    def launch(
        self,
        grads: Sequence[Tensor],
        buffers: Sequence[Tensor],
        stale: list[int],
        h: Hyperparameters,
        given: Modifiers,
    ) -> None:
        self._refresh(stale)
        ops.sgd_step_(
            self.views,
            grads,
            buffers,
            self._norms,
            self.coefficients,
            given.scales,
            lr=float(as_scalar(h.lr)),
            momentum=h.momentum,
            dampening=h.dampening,
            weight_decay=float(as_scalar(h.weight_decay)),
            nesterov=h.nesterov,
            maximize=h.maximize,
            grad_scale=given.grad_scale,
            found_inf=given.found_inf,
            seed=None if given.seed is None else int(given.seed),
            streams=self._streams,
            uses_norm=self._uses_norm,
            samples=self._samples,
            unseen=self._unseen,
        )
