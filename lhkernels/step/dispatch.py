"""Which backend steps which parameters, and why another can't."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from lhkernels.step.base import FusedSet, StepSet
from lhkernels.step.cpp import CppSet
from lhkernels.step.torch_ops import ForeachSet, ReferenceSet
from lhkernels.step.triton import TritonSet

FUSED: dict[str, type[FusedSet]] = {"cpp": CppSet, "triton": TritonSet}
DEFAULT_FUSED = {"cpu": "cpp", "cuda": "triton"}

# torch.optim's own rule: on other devices its foreach operations are loops, 10 times slower than
# the reference on two CPU cores.
FOREACH_DEVICES = ("cuda", "xpu", "mtia")


def choose(
    group: Mapping[str, Any], device: torch.device, dtype: torch.dtype, flat: bool
) -> type[StepSet]:
    """The backend for a group's parameters of one device and dtype.

    ``fused``, ``foreach`` and ``differentiable`` are torch.optim's own flags. With none set: fused
    where it exists, else foreach where torch has kernels for it, else the reference. Parameters
    that are not ``flat`` are the reference's in any case: strided slices, subclasses of Tensor with
    operations of their own, and parameters that share memory.

    Raises:
        RuntimeError: ``fused=True`` where no fused backend can run, with the reason.
    """
    fused, foreach = group["fused"], group["foreach"]
    if group["differentiable"] or not flat:
        return ReferenceSet
    if fused:
        backend, reason = fused_backend(device.type, dtype)
        if backend is None:
            raise RuntimeError(
                f"fused=True, but there is no fused step for {dtype} parameters on {device}: "
                f"{reason}; pass fused=None to let the optimizer choose"
            )
        return backend
    if foreach:
        return ForeachSet
    if fused is None and foreach is None:
        backend, _ = fused_backend(device.type, dtype)
        if backend is not None and _owes_torchs_bits(group, dtype):
            backend = None
        if backend is not None:
            return backend
        if device.type in FOREACH_DEVICES:
            return ForeachSet
    return ReferenceSet


def _owes_torchs_bits(group: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Whether plain SGD has torch's numbers only if it rounds where torch rounds.

    In float32 and float64 the C++ step's numbers are torch's already (on processors with fused
    multiply-add). In others torch rounds after every operation (or multiplies complex numbers), a
    fused step once: ask for it.
    """
    wider = group["momentum_dtype"] is not None or group["stochastic_rounding"]
    return not (group["amend"] or wider or dtype in (torch.float32, torch.float64))


def fused_backend(device_type: str, dtype: torch.dtype) -> tuple[type[StepSet] | None, str | None]:
    """The fused backend for a device and dtype, or None and the reason why there is none.

    C++ for CPU tensors and Triton for CUDA; ``LHKERNELS_FUSED_BACKEND=cpp|triton`` overrides that
    (under ``TRITON_INTERPRET=1`` the Triton kernel runs on CPU tensors).
    """
    name = os.environ.get("LHKERNELS_FUSED_BACKEND") or DEFAULT_FUSED.get(device_type)
    if name is None:
        return None, f"fused steps exist for {' and '.join(DEFAULT_FUSED)} tensors only"
    if name not in FUSED:
        raise RuntimeError(
            f"LHKERNELS_FUSED_BACKEND={name!r} is unknown; set it to one of {', '.join(FUSED)}, or "
            "unset it"
        )
    backend = FUSED[name]
    reason = backend.unavailable(device_type, dtype)
    return (backend, None) if reason is None else (None, reason)
