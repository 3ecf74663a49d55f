"""What a figure must be read with: the machine, the versions, the build."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch

import lhkernels
from lhkernels.cli.info import collect


def describe(device: torch.device) -> dict[str, object]:
    """The environment of a benchmark on ``device``, ready for JSON."""
    found = collect()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "lhkernels": lhkernels.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        **found["versions"],
    }


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor's name, with its instruction set as torch uses it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
