"""What figures must be read with: versions, devices and backends of this installation."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import lhkernels
from lhkernels.step.dispatch import DEFAULT_FUSED, fused_backend

PACKAGES = ("triton", "numpy", "scipy", "matplotlib", "scikit-learn", "rich", "pytorch_optimizer")
PEERS = ("torch-optimi", "curvlinops-for-pytorch")

# Words of a processor's name that tell no machine from another.
NOISE = re.compile(
    r"\((r|tm|c)\)|@.*$|\b(intel|amd|processor|cpu|\d+-core|(with|w/) radeon.*)(?!\w)|\(.*?\)",
    re.IGNORECASE,
)


def collect() -> dict[str, dict[str, str]]:
    """Versions, devices and backends, by name."""
    return {
        "versions": _versions(),
        "devices": _devices(),
        "backends": {
            "reference": "available",
            "foreach": "available",
            **{name: _fused(device) for device, name in DEFAULT_FUSED.items()},
        },
    }


def describe(device: torch.device) -> dict[str, Any]:
    """The date, the hardware and the versions of a run on ``device``, ready for JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **_versions(),
        **{name: _version(name) for name in PEERS},
    }


def machine(device: torch.device | None = None) -> str:
    """``device``'s folder under bench/results/: ``xeon-2-cores``, ``nvidia-h100-80gb-hbm3``."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        return slug(torch.cuda.get_device_name(device))
    return f"{slug(NOISE.sub(' ', cpu_model()))}-{os.cpu_count()}-cores"


def slug(name: str) -> str:
    """``name`` in lower case, everything but letters and digits turned into single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "cpu"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its instruction set as torch uses it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()} ({torch.backends.cpu.get_cpu_capability()})"


def cpu_model() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), name)
    return name


def _versions() -> dict[str, str]:
    return {
        "lhkernels": lhkernels.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda or "none (CPU build)",
        **{name: _version(name) for name in PACKAGES},
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
