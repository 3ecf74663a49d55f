"""Versions, devices and backends of this installation."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import lhkernels
from lhkernels.step.dispatch import DEFAULT_FUSED, fused_backend

PACKAGES = ("triton", "numpy", "scipy", "matplotlib", "scikit-learn", "rich", "pytorch_optimizer")


def collect() -> dict[str, dict[str, str]]:
    """Versions, devices and backends, by name."""
    return {
        "versions": {
            "lhkernels": lhkernels.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "torch's CUDA": torch.version.cuda or "none (CPU build)",
            **{name: _version(name) for name in PACKAGES},
        },
        "devices": _devices(),
        "backends": {
            "reference": "available",
            "foreach": "available",
            **{name: _fused(device) for device, name in DEFAULT_FUSED.items()},
        },
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    capability = torch.backends.cpu.get_cpu_capability()
    devices = {"cpu": f"{torch.get_num_threads()} threads, {capability}"}
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}"
    return devices


def _fused(device_type: str) -> str:
    try:
        backend, reason = fused_backend(device_type, torch.float32)
    except RuntimeError as error:
        return f"not available: {error}"
    return f"available, fused=True on {device_type}" if backend else f"not available: {reason}"
