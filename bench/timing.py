"""Waiting for the device, a copy's rate, and whether this machine is quiet enough for timing."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch


def wait(device: torch.device) -> None:
    """Until ``device`` is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_copy(device: torch.device, mib: int = 256) -> float:
    """GB/s (bytes read and written) of ``dst.copy_(src)``: the best of 20."""
    src = torch.ones(mib * 2**18, device=device)
    dst = torch.empty_like(src)
    best = math.inf
    for _ in range(20):
        wait(device)
        start = time.perf_counter()
        dst.copy_(src)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * src.nbytes / best / 1e9


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
