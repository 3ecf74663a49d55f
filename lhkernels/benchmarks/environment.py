"""Whether this machine is quiet enough to time anything."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lhkernels.environment import describe, machine

__all__ = ["busy_cores", "describe", "machine"]


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
