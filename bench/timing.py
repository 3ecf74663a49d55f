"""How things are timed: the device is waited for, and contenders take turns."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def wait(device: torch.device) -> None:
    """Until ``device`` is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, host included, from an idle device to an idle device."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def in_turns(calls: Mapping[str, Callable], seconds: float, least: int) -> dict[str, list]:
    """What each call returns, round by round: ``least`` rounds, and more for about ``seconds``."""
    found: dict[str, list] = {name: [] for name in calls}
    start, rounds = time.perf_counter(), 0
    while calls and (time.perf_counter() - start < seconds or rounds < least):
        for name, call in calls.items():
            found[name].append(call())
        rounds += 1
    return found


def quartiles(field: str, values: list[float]) -> dict[str, float | None]:
    """The median as ``field``, the quartiles as ``field_low`` and ``field_high``; None of none."""
    low, middle, high = statistics.quantiles(values, n=4) if values else (None, None, None)
    return {field: middle, f"{field}_low": low, f"{field}_high": high}


def measure_copy(device: torch.device, mib: int = 256) -> float:
    """GB/s (bytes read and written) of ``dst.copy_(src)``: the best of 20."""
    src = torch.ones(mib * 2**18, device=device)
    dst = torch.empty_like(src)
    return 2e-9 * src.nbytes / min(timed(lambda: dst.copy_(src), device) for _ in range(20))


def count_launches(call: Callable[[], object]) -> int:
    """Kernels that a call launches on the GPU, from a profiler's trace."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    others = ("Memcpy", "Memset", "Optimizer.")  # the last is the span of torch's own annotation
    on_device = (e for e in trace.events() if e.device_type.name == "CUDA")
    return sum(not e.name.startswith(others) for e in on_device)


def busy_cores(seconds: float = 0.2) -> float:
    """How many cores are at work now, this process idle; 0 where the system doesn't say.

    With one thread a core, anything else that runs makes every barrier wait: times taken then can
    be wrong by a factor of ten.
    """
    ticks, stat = [], Path("/proc/stat")
    for pause in (0, seconds) if stat.exists() else ():
        time.sleep(pause)
        ticks.append([int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]])
    passed = [after - before for before, after in zip(*ticks)] or [0]
    idle = sum(passed[3:5])  # waiting for a disk included
    return (1 - idle / sum(passed)) * (os.cpu_count() or 1) if sum(passed) > 0 else 0.0
