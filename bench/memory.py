"""Peak memory of a product: what is allocated above what was there before, in bytes.

On CUDA the caching allocator counts. On a CPU nothing does (convolution libraries allocate for
themselves), so a process of its own measures how far its resident set rises: the kernel's
high-water mark is reset before and read after. Needs Linux's /proc; elsewhere there is no figure.

    python -m bench.memory '{"contender": ..., "cases": [...], "threads": 2}'
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import peers
from bench.blocks import Case

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")

# glibc keeps freed memory for later and raises its threshold as it goes; with a fixed one, every
# larger block is mapped when it is allocated and unmapped when it is freed.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


def cpu_peaks(contender: str, cases: Sequence[Case]) -> list[int | None]:
    """Peak bytes of a fresh operator and one product for each case, by a process of its own."""
    if not CLEAR_REFS.exists():
        return [None] * len(cases)
    request = {
        "contender": contender,
        "cases": [asdict(case) for case in cases],
        "threads": torch.get_num_threads(),
    }
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", json.dumps(request)],
        env={**os.environ, **MALLOC, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {contender!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def cuda_peak(action: Callable[[], object], device: torch.device) -> int:
    """Peak bytes that ``action`` allocates on ``device``."""
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    action()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def resident_rise(action: Callable[[], object]) -> int:
    """Bytes by which the resident set of this process rises at most while ``action`` runs."""
    gc.collect()
    _trim()
    CLEAR_REFS.write_text("5")  # the high-water mark becomes the present size
    before = _status("VmRSS")
    action()
    return max(0, _status("VmHWM") - before)


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    line = next(s for s in STATUS.read_text().splitlines() if s.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _serve(request: dict) -> list[int]:
    """The child's work: every case once at a tiny size, which loads code, then as it is."""
    torch.set_num_threads(request["threads"])
    make = {**peers.contenders(), **peers.EXTRA}[request["contender"]]
    peaks = []
    for case in (Case(**fields) for fields in request["cases"]):
        for size in (case.tiny, case):
            problem = peers.problem(size, torch.device("cpu"))
            columns = size.vectors(problem.point.numel(), torch.device("cpu"))
            with torch.no_grad():
                problem.bare(problem.inputs)  # threads and the libraries' own buffers exist
            peak = resident_rise(functools.partial(_multiply, make, problem, columns))
        peaks.append(peak)
    return peaks


def _multiply(make: Any, problem: Any, columns: Tensor) -> None:
    make(problem)(columns)


if __name__ == "__main__":
    print(json.dumps(_serve(json.loads(sys.argv[1]))))
