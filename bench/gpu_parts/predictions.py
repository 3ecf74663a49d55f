"""What was predicted for an H100 before anything was measured; docs/step.md derives the times."""

from __future__ import annotations

GPU = "H100"

STEP_MS = {
    "resnet50": (0.19, 0.21),
    "vit-b16": (0.61, 0.65),
    "gpt2-small": (0.88, 0.93),
    "transformer-1b": (3.85, 4.18),  # docs/step.md's row for 1.0 B, at the benchmark's 1.10 B
    "transformer-7b": (24.0, 26.0),
}
"""Device time of ``ScaleAmendedSGD``'s step with momentum, (low, high) in milliseconds."""

BYTES = {
    "ours, float32": 20,
    "ours, float32, no momentum": 12,
    "ours, bfloat16": 10,
    "ours, bfloat16, float32 momentum": 14,
    "torch fused, float32": 20,
    "torch fused, bfloat16": 10,
    "torch foreach, float32": 44,
}
"""DRAM bytes per element and step, read and written."""

LAUNCHES = {
    ("lhkernels", "resnet50"): 1,
    ("lhkernels", "gpt2-small"): 1,
    ("lhkernels", "transformer-1b"): 1,
    ("lhkernels, capturable", "resnet50"): 2,
    ("torch fused", "resnet50"): 1,  # built with CUDA 13; 4 with CUDA 12
}
"""Kernels per step; 2 under ``capturable``, whose second one flips the norms' parity."""

SHARE = {"lhkernels": (0.02, 0.08), "torch fused": (0.02, 0.08), "torch foreach": (0.05, 0.15)}
"""The step's part of a training step of the GPT-2-small-like stack, (low, high)."""


def verdict(measured: float, predicted: float | tuple[float, float], slack: float = 0.05) -> str:
    """ "as predicted", "below" or "above" a number or a range, give or take ``slack``."""
    low, high = predicted if isinstance(predicted, tuple) else (predicted, predicted)
    if measured < low * (1 - slack):
        return "below"
    return "above" if measured > high * (1 + slack) else "as predicted"


def shown(predicted: float | tuple[float, float] | None) -> str:
    """For a table."""
    if predicted is None:
        return ""
    if isinstance(predicted, tuple):
        return f"{predicted[0]:g} - {predicted[1]:g}"
    return f"{predicted:g}"
