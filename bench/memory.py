"""Peak memory of a product: what is allocated above what was there before, in bytes.

On CUDA the caching allocator counts. On a CPU nothing does (convolution libraries allocate for
themselves), so a process of its own measures how far its resident set rises: the kernel's
high-water mark is reset before and read after. Needs Linux's /proc; elsewhere there is no figure.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from bench.blocks import CONTENDERS, Case, Problem

CLEAR_REFS = Path("/proc/self/clear_refs")

# glibc keeps freed memory for later and raises its threshold as it goes; with a fixed one, every
# larger block is mapped when it is allocated and unmapped when it is freed. Read at a start.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


def peaks(contender: str, cases: list[Case], device: torch.device) -> list[int | None]:
    """Peak bytes of a fresh operator and one product for each case, by a process of its own."""
    os.environ.update(MALLOC)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, contender, cases, device, torch.get_num_threads()).result()


def measure(name: str, cases: list[Case], device: torch.device, threads: int) -> list[int | None]:
    """The process's work: every case once at a tiny size, which loads code, then as it is."""
    torch.set_num_threads(threads)
    found = []
    for case in cases:
        tiny = replace(case, n_in=4, n_out=4, batch=4, size=min(case.size, 4), columns=2)
        for size in (tiny, case):
            p = Problem(size, device)
            p.bare(p.inputs)  # threads and the libraries' own buffers exist
            try:
                peak = rise(lambda p=p: CONTENDERS[name](p)(p.columns), device)
            except torch.OutOfMemoryError:
                peak = None
        found.append(peak)
    return found


def rise(action: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which memory rises at most while ``action`` runs: the resident set's on a CPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    if not CLEAR_REFS.exists():
        return None
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5")  # the high-water mark becomes the present size
    before = said("/proc/self/status", "VmRSS")
    action()
    return max(0, said("/proc/self/status", "VmHWM") - before)


def said(file: str, field: str) -> int:
    """Bytes, by one of the kernel's files."""
    return 1024 * int(re.search(rf"^{field}:\s*(\d+)", Path(file).read_text(), re.MULTILINE)[1])


def available(device: torch.device) -> int:
    """Free memory on ``device``; without a way to know, 4 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    file = "/proc/meminfo"
    return said(file, "MemAvailable") if Path(file).exists() else 4 << 30
