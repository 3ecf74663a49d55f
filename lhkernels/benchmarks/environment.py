"""What a figure must be read with: the machine, the versions, the build."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import time
from pathlib import Path

import torch

import lhkernels
from lhkernels.environment import collect

PEERS = ("torch-optimi", "pytorch_optimizer", "curvlinops-for-pytorch")

# Words of a processor's name that tell no machine from another.
NOISE = re.compile(
    r"\((r|tm|c)\)|@.*$|\b(intel|amd|processor|cpu|\d+-core|(with|w/) radeon.*)(?!\w)|\(.*?\)",
    re.IGNORECASE,
)


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
        **{peer: version(peer) for peer in PEERS},
    }


def busy_cores(seconds: float = 0.2) -> float | None:
    """How many cores are at work now, this process idle; None where the system doesn't say.

    With one thread a core, anything else that runs makes every barrier wait: times taken then can
    be wrong by a factor of ten.
    """
    first = _cpu_ticks()
    time.sleep(seconds)
    second = _cpu_ticks()
    if first is None or second is None or second[0] <= first[0]:
        return None
    idle = (second[1] - first[1]) / (second[0] - first[0])
    return (1 - idle) * (os.cpu_count() or 1)


def _cpu_ticks() -> tuple[int, int] | None:
    """Ticks of all cores since the start: all, idle."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    ticks = [int(field) for field in path.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def version(package: str) -> str:
    """The installed version of a peer."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


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
    """The GPU's or the CPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor's name, with its instruction set as torch uses it."""
    return f"{cpu_model()} ({torch.backends.cpu.get_cpu_capability()})"


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), name)
    return name
