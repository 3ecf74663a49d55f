"""What the results must be read with: GPU, driver, clocks, versions, and how the code was built."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from gpu_parts.runner import end

QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.draw,power.limit,temperature.gpu,persistence_mode,compute_mode,mig.mode.current"
)


def describe(dry_run: bool) -> dict[str, Any]:
    """The environment, ready for JSON; reading changes no setting."""
    from lhkernels import environment

    device = torch.device("cpu" if dry_run else "cuda")
    found: dict[str, Any] = {**environment.describe(device), "dry run": dry_run}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory, GiB": round(properties.total_memory / 2**30, 1),
            "L2, MiB": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
        }
    found["nvidia-smi"] = nvidia_smi()
    found["nvcc"] = first_line(["nvcc", "--version"], word="release")
    found["cudnn"] = torch.backends.cudnn.version()
    return found


def nvidia_smi() -> dict[str, str] | str:
    """Clocks, driver and power of the first GPU; or why they can't be read."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not readable: {error}"
    if done.returncode:
        return f"not readable: {(done.stdout + done.stderr).strip()[:200]}"
    return parse_query(done.stdout)


def parse_query(text: str) -> dict[str, str]:
    """The first GPU of ``nvidia-smi --query-gpu=... --format=csv``, by column."""
    rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
    return dict(zip(rows[0], rows[1])) if len(rows) > 1 else {}


def first_line(command: list[str], word: str = "") -> str:
    """The first line that a command prints with ``word`` in it; "not found" without it."""
    if shutil.which(command[0]) is None:
        return "not found"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if word in line), "says nothing")


def extension(root: Path, *, build: bool, limit: float = 240) -> str:
    """How the C++ extension stands; built in place if it is missing and there is a compiler."""
    state = _extension_state(root)
    if state == "loads" or not build:
        return state
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return f"not built: there is no compiler {compiler}; before: {state}"
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=root, **pipes, preexec_fn=os.setpgrp)
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not built: the build took more than {limit:.0f} s"
    finally:
        end(process)  # compilers too, which would disturb all times
    state = _extension_state(root)
    if state == "loads":
        return "built here, loads"
    tail = printed.strip().splitlines()[-1:]
    return f"the build failed ({' '.join(tail)[:200]}): {state}"


def _extension_state(root: Path) -> str:
    code = "from lhkernels import _extension; print(_extension.reason() or 'loads')"
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True
    )
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else "unknown"
