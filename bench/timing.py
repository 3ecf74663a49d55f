"""How time and memory are measured: the device is waited for, and contenders take turns."""

import contextlib
import ctypes
import gc
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

PROC = Path("/proc")  # Linux's


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


def measure_copy(device: torch.device) -> float:
    """GB/s (bytes read and written) of copying 256 MiB: the best of 20."""
    src = torch.ones(2**26, device=device)
    dst = torch.empty_like(src)
    return 2e-9 * src.nbytes / min(timed(lambda: dst.copy_(src), device) for _ in range(20))


def count_launches(call: Callable[[], object]) -> int:
    """Kernels that a call launches on the GPU, from a profiler's trace."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    skip = ("Memcpy", "Memset", "Optimizer.")  # the last is the span of torch's own annotation
    return sum(e.device_type.name == "CUDA" and not e.name.startswith(skip) for e in trace.events())


def busy_cores() -> float:
    """How many cores others keep at work now; 0 where the system doesn't say.

    With one thread a core, they make every barrier wait: times can be wrong by a factor of ten.
    """
    ticks, stat = [], PROC / "stat"
    for pause in (0, 0.2) if stat.exists() else ():
        time.sleep(pause)
        ticks.append([int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]])
    passed = [after - before for before, after in zip(*ticks)]
    if sum(passed) <= 0:
        return 0.0
    return (1 - (passed[3] + passed[4]) / sum(passed)) * (os.cpu_count() or 1)


def available(device: torch.device) -> int:
    """Bytes of free memory on ``device``; without a way to know, 4 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _said("meminfo", "MemAvailable") if (PROC / "meminfo").exists() else 4 << 30


def rise(action: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which memory rises at most while ``action`` runs; None where nobody counts.

    On a CPU convolution libraries allocate for themselves; Linux marks the largest resident set.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    clear = PROC / "self/clear_refs"
    if not clear.exists():
        return None
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")  # the high-water mark becomes the present size
    before = _said("self/status", "VmRSS")
    action()
    return max(0, _said("self/status", "VmHWM") - before)


def _said(file: str, field: str) -> int:
    return 1024 * int(re.search(rf"^{field}:\s*(\d+)", (PROC / file).read_text(), re.M)[1])
