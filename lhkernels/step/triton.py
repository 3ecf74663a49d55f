"""The fused step on CUDA tensors, in Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lhkernels.hyperparameters import Hyperparameters
from lhkernels.plan import Block
from lhkernels.step.base import UNMODIFIED, Buffers, FusedSet, Modifiers
from lhkernels.step.layout import as_real
from lhkernels.step.triton_tables import Tables

LOOK_EVERY = 16
"""Steps between two looks at what the kernel says of writes that nobody announced."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)


class TritonSet(FusedSet):
    """One launch for all: :func:`lhkernels.step.triton_kernel.step`; norms in float32."""

    name = "triton"

    def __init__(
        self, params: Sequence[Tensor], blocks: Sequence[Block] | None, **options: Any
    ) -> None:
        super().__init__(params, blocks, **options)
        uses_norm = None if blocks is None else self.uses_norm
        options = {"streams": self.streams, "capturable": self.capturable}
        self._tables = Tables(as_real(self.params), uses_norm=uses_norm, **options)
        self._steps = 0
        self._copied: Tensor | None = None  # of the tables' `unseen`, some steps ago

    @staticmethod
    def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
        try:
            from lhkernels.step import triton_kernel
        except ImportError as error:
            return f"triton does not import: {error}"
        if dtype not in DTYPES:
            return f"the Triton step has no {dtype}"
        if device_type == "cuda" and not torch.cuda.is_available():
            return "torch finds no CUDA device"
        if device_type != "cuda" and not triton_kernel.INTERPRETED.value:
            return f"Triton kernels run on {device_type} tensors only under TRITON_INTERPRET=1"
        return None

    @torch.no_grad()
    def step(
        self,
        grads: Sequence[Tensor],
        buffers: Buffers,
        h: Hyperparameters,
        given: Modifiers = UNMODIFIED,
    ) -> Buffers:
        from lhkernels.step import triton_kernel

        tables = self._tables
        on_gpu = tables.device.type == "cuda"
        if on_gpu and not self.capturable and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "capturable=False, but the step is being captured in a CUDA graph; build the "
                "optimizer with capturable=True, so that its norms alternate on the device"
            )
        grads, kept = self.in_memory_order(grads, buffers, h)
        real = [grad.resolve_neg() for grad in as_real(grads)]
        with self.norms.renewed() as stale:
            tables.update(as_real(self.params), real, as_real(kept))
            tables.coefficients = self.coefficients
            triton_kernel.refresh_norms(tables, stale)
            triton_kernel.step(tables, h, *given)
            increment_version([*self.params, *kept])
            self.bump_wholes()
        return kept

    def sq_norms(self) -> Tensor:
        from lhkernels.step import triton_kernel

        with self.norms.renewed() as stale:
            if stale:
                self._tables.update(as_real(self.params))
                triton_kernel.refresh_norms(self._tables, stale)
        return triton_kernel.sq_norms(self._tables)

    def unseen(self) -> int | None:
        flag = self._tables.unseen
        if flag is None:
            return None
        found = self._look(flag) if flag.device.type == "cuda" else int(flag)
        if not found:
            return None
        self._forget_unseen()
        return found - 1

    def _look(self, flag: Tensor) -> int:
        """The flag of a step ago, without a wait: every :data:`LOOK_EVERY` steps it is copied, and
        read a step later, when the copy has most likely come; if not, it is read the next time."""
        self._steps += 1
        if torch.cuda.is_current_stream_capturing():
            return 0
        if self._steps % LOOK_EVERY == 0:
            if self._copied is None:
                self._copied = torch.zeros(1, dtype=flag.dtype, device="cpu").pin_memory()
            self._copied.copy_(flag, non_blocking=True)
        elif self._steps % LOOK_EVERY == 1 and self._copied is not None:
            return int(self._copied)
        return 0

    def _forget_unseen(self) -> None:
        self._copied = None  # a copy that is still under way goes to memory that nobody reads
        if self._tables.unseen is not None:
            self._tables.unseen.zero_()

    def invalidate_norms(self) -> None:
        super().invalidate_norms()
        self._forget_unseen()
