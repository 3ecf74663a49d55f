"""``python -m lhkernels info``: versions, and which backends can run here and why others can't."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from typing import Any

import torch

import lhkernels
from lhkernels.step.dispatch import DEFAULT_FUSED, fused_backend

PACKAGES = ("triton", "numpy", "scipy", "matplotlib", "scikit-learn", "rich", "pytorch_optimizer")


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "info",
        help="versions, available backends and why others are not",
        description="Print versions, devices, and for each backend whether it can run here.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what :func:`collect` finds."""
    found = collect()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    for title, rows in found.items():
        print(title)
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"  {name.ljust(width)}  {value}")
    return 0


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
