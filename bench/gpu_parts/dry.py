"""Environments of a dry run: which step takes CPU tensors in the GPU's place."""

from __future__ import annotations


def interpreted() -> dict[str, str]:
    """The Triton step, interpreted."""
    return {"TRITON_INTERPRET": "1", "LHKERNELS_FUSED_BACKEND": "triton"}


def compilable() -> dict[str, str]:
    """The C++ step: dynamo can't trace Triton's interpreter."""
    return {"TRITON_INTERPRET": "0", "LHKERNELS_FUSED_BACKEND": ""}
