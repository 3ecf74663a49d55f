"""The fused step on CPU tensors: the C++ operators, and the set that they step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lhkernels import _extension
from lhkernels.hyperparameters import Hyperparameters
from lhkernels.plan import Block
from lhkernels.step.base import UNMODIFIED, Buffers, FusedSet, Modifiers
from lhkernels.step.layout import as_real

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)


class CppSet(FusedSet):
    """One pass over all parameters, by :func:`sgd_step_`; norms and scales in float64."""

    name = "cpp"

    def __init__(
        self, params: Sequence[Tensor], blocks: Sequence[Block] | None, **options: Any
    ) -> None:
        super().__init__(params, blocks, **options)
        self._sq_norms = self._samples = None
        if blocks is not None:
            self._sq_norms = torch.ones(len(params), dtype=torch.float64, device="cpu")
            self._samples = torch.zeros(len(params), dtype=torch.int64, device="cpu")
        self._uses_norm = torch.tensor(self.uses_norm, device="cpu")
        self._streams = torch.tensor(self.streams, device="cpu")
        self._unseen = torch.zeros(1, dtype=torch.int64, device="cpu")  # 1 + a position

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

    @torch.no_grad()
    def step(
        self,
        grads: Sequence[Tensor],
        buffers: Buffers,
        h: Hyperparameters,
        given: Modifiers = UNMODIFIED,
    ) -> Buffers:
        grads, kept = self.in_memory_order(grads, buffers, h)
        with self.norms.renewed() as stale:
            self._refresh(stale)
            sgd_step_(
                as_real(self.params),
                as_real(grads),
                as_real(kept),
                h,
                sq_norms=self._sq_norms,
                coefficients=self.coefficients,
                uses_norm=self._uses_norm,
                samples=self._samples,
                unseen=self._unseen,
                streams=self._streams,
                scales=given.scales,
                grad_scale=given.grad_scale,
                found_inf=given.found_inf,
                seed=None if given.seed is None else int(given.seed),
            )
            self.bump_wholes()
        return kept

    def sq_norms(self) -> Tensor:
        assert self._sq_norms is not None
        with self.norms.renewed() as stale:
            self._refresh(stale)
        return self._sq_norms.clone()

    def _refresh(self, stale: list[int]) -> None:
        if stale:
            assert self._sq_norms is not None
            assert self._samples is not None
            weights = as_real([self.params[i].detach() for i in stale])
            self._sq_norms[stale] = sq_norms(weights)
            self._samples[stale] = samples(weights)

    def unseen(self) -> int | None:
        found = int(self._unseen)
        if found == 0:
            return None
        self._unseen.zero_()
        return found - 1


def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    h: Hyperparameters,
    *,
    sq_norms: Tensor | None = None,
    coefficients: Tensor | None = None,
    uses_norm: Tensor | None = None,
    samples: Tensor | None = None,
    unseen: Tensor | None = None,
    streams: Tensor | None = None,
    scales: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: int | None = None,
) -> None:
    r"""One step of B >= 1 parameters, in place; gradients are never written (csrc/sgd_step.cpp).

    .. math::
        d &= s_b (\pm g / \text{grad\_scale} + \text{weight\_decay}\, W) \\
        buf &\leftarrow \text{momentum}\, buf + (1 - \text{dampening})\, d \\
        W &\leftarrow W - lr\, (d + \text{momentum}\, buf \text{ if nesterov, else } buf)

    in float32 (float64 for float64 parameters), each stored value rounded once.

    Args:
        params: dense CPU tensors of one dtype, float32, float64, bfloat16 or float16, of which no
            two share memory.
        grads: of the parameters' sizes and strides, each of any of those dtypes.
        momentum_buffers: the same; empty where momentum is 0. Zeros before the first step.
        h: the hyperparameters, which the host reads.
        sq_norms: (B,) float64, ``||W_b||_F^2`` before the step; on return that of the new weights.
        coefficients: (B,), ``s_b = coefficients[b] * sq_norms[b]``.
        uses_norm: (B,); only where it is not 0 is ``sq_norms`` written.
        samples: (B,) int64, :func:`samples` of the weights that ``sq_norms`` are of; on return
            those of the new weights. A norm whose weight has another sample is computed anew.
        unseen: 1 int64; set to 1 + the position of the first weight that had another sample.
        streams: (B,) int64, the tensors' numbers in the random draws; default: their positions.
        scales: (B,), ``s_b`` itself; without either, ``s_b = 1``: plain SGD.
        grad_scale: 1 element; gradients are divided by it.
        found_inf: 1 element; anything but 0 leaves everything as it is.
        seed: for stochastic rounding of bfloat16 and float16 parameters; None rounds to nearest.

    Raises:
        ValueError, TypeError: what does not fit, before anything is changed.
    """
    state = (sq_norms, coefficients, uses_norm, samples, unseen, streams)
    torch.ops.lhkernels.sgd_step_.default(
        params, grads, momentum_buffers, *state, scales, grad_scale, found_inf, seed, **h.numbers()
    )


def sq_norms(params: Sequence[Tensor]) -> Tensor:
    """``||W_b||_F^2`` of dense CPU tensors, (B,) float64, with the bits that a step leaves."""
    return torch.ops.lhkernels.sq_norms.default(params)


def samples(params: Sequence[Tensor]) -> Tensor:
    """A hash of a few cache lines of each tensor, (B,) int64.

    Of 1 KiB of every 65,536 elements, and of 4 KiB of what is left, or of a smaller tensor. By it
    :func:`sgd_step_`, which leaves the same for the weights it wrote, knows that somebody else has
    written them since. It sees whole tensors of up to 4 KiB; in larger ones it misses writes that
    leave those lines as they were.
    """
    return torch.ops.lhkernels.samples.default(params)
