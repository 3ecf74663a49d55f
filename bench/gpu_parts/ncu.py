"""Nsight Compute: the command that counts DRAM bytes, and what is read from its CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_parts.dry import interpreted
from gpu_parts.predictions import BYTES
from gpu_parts.runner import Context, Failed, Unavailable

READ, WRITTEN, DURATION = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"
FOLDERS = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer",
           "/opt/nvidia/nsight-compute/*", "/usr/local/NVIDIA-Nsight*")  # fmt: skip
# Bytes, and seconds; as --print-units base gives them, and as versions without it scale them.
UNITS = {
    "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "Tbyte": 1e12,
    "nsecond": 1e-9, "usecond": 1e-6, "msecond": 1e-3, "second": 1.0,
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0,
}  # fmt: skip
REMEDIES = {
    "ERR_NVGPUCTRPERM": "ncu may not read the GPU's counters (ERR_NVGPUCTRPERM): run as root, in a "
    "container with --cap-add=SYS_ADMIN, or load the driver with "
    "NVreg_RestrictProfilingToAdminUsers=0",
    "LibraryNotLoaded": "ncu cannot load the driver's profiler library on this machine "
    "(LibraryNotLoaded); a virtualised runtime may hide it",
    "not compatible with Nsight Compute": "ncu is older or newer than the driver allows",
    "Failed to initialize the profiler": "ncu cannot start its profiler on this machine",
}


def find(name: str = "ncu") -> str:
    """A program of the CUDA toolkit, on PATH or where it is usually installed.

    Raises:
        Unavailable: it is nowhere.
    """
    found = shutil.which(name)
    if found:
        return found
    for pattern in FOLDERS:
        for folder in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if (folder / name).is_file():
                return str(folder / name)
    raise Unavailable(f"{name} is neither on PATH nor in {', '.join(FOLDERS)}")


def command(program: str, log: Path, target: Sequence[str]) -> list[str]:
    """Count the bytes of all kernels between the target's profiler start and stop.

    Clocks are left alone. Caches are flushed before each kernel, so that no read is served by what
    an earlier kernel left in L2; what this one leaves there unwritten is at most the L2's size.
    """
    return [
        program, "--csv", "--print-units", "base", "--metrics", f"{READ},{WRITTEN},{DURATION}",
        "--profile-from-start", "off", "--target-processes", "all",
        "--clock-control", "none", "--cache-control", "all", "--log-file", str(log), *target,
    ]  # fmt: skip


def part(context: Context) -> None:
    """DRAM bytes per element of a step of one large tensor, counted by ncu."""
    cases = context.data["cases"] = {}
    program = None if context.dry_run else find()
    for case in BYTES:
        with context.attempt(case):
            cases[case] = count(context, program, case)
        if context.problems and isinstance(context.problems[-1], Unavailable):
            return  # what is refused to one is refused to all
        if context.left <= 0:
            return


def count(context: Context, program: str | None, case: str) -> dict[str, Any]:
    """One case's counts; with no program, only whether its steps run."""
    target, log = context.path("one-step.json"), context.path("ncu.csv")
    for path in (target, log):
        path.unlink(missing_ok=True)
    driver = ["-m", "gpu_parts.drivers.one_step", "--json", str(target), "--case", case]
    if program is None:
        context.python(*driver, "--dry-run", env=interpreted())
        return {"kernels": None}
    # One that hangs must leave time for the others.
    limit = max(60.0, 0.5 * context.left)
    status = context.execute(command(program, log, [sys.executable, *driver]), limit=limit)
    text = log.read_text() if log.exists() else ""
    check_refusal(context.printed() + "\n" + text)
    if status or not target.exists():
        errors = [line for line in text.splitlines() if line.startswith("==ERROR==")]
        said = "; ".join([*errors, context.last_line()])
        raise Failed(f"ncu exited with {status}: {said}")
    ran = json.loads(target.read_text())
    return per_element(parse(text), ran["elements"], ran["steps"])


def check_refusal(text: str) -> None:
    """Raise Unavailable if ncu's remarks, the lines that begin with ``==``, say that it may not."""
    remarks = "\n".join(line for line in text.splitlines() if line.startswith("=="))
    for sign, remedy in REMEDIES.items():
        if sign in remarks:
            raise Unavailable(remedy)


def parse(text: str) -> list[dict[str, Any]]:
    """Kernels in the order of their launches: name, bytes read and written, seconds.

    Args:
        text: what ncu wrote with ``--csv``; lines that begin with ``==`` are its remarks.

    Raises:
        Unavailable: ncu may not or cannot read counters here.
        Failed: there is no kernel, or a metric has no value.
    """
    check_refusal(text)
    if "No kernels were profiled" in text:
        raise Unavailable("ncu saw no kernel in the profiled range, though the steps ran")
    lines = [line for line in text.splitlines() if line.startswith('"')]
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        metric, value = row.get("Metric Name") or "", row.get("Metric Value") or ""
        if metric not in (READ, WRITTEN, DURATION):
            continue
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        try:
            kernel[metric] = float(value.replace(",", "")) * UNITS[row["Metric Unit"]]
        except (ValueError, KeyError) as error:
            raise Failed(
                f"ncu gave {value!r} {row.get('Metric Unit')!r} for {metric} of "
                f"{row['Kernel Name']}"
            ) from error
    if not kernels:
        raise Failed(f"ncu's CSV has no kernel; it begins with {text[:120]!r}")
    for kernel in kernels.values():
        if READ not in kernel or WRITTEN not in kernel:
            raise Failed(f"ncu's CSV lacks {READ} or {WRITTEN} for {kernel['kernel']}")
    return list(kernels.values())


def per_element(kernels: Sequence[dict[str, Any]], elements: int, steps: int) -> dict[str, Any]:
    """Bytes per element and step, of all kernels together, and their rate."""
    read = sum(k[READ] for k in kernels) / (elements * steps)
    written = sum(k[WRITTEN] for k in kernels) / (elements * steps)
    seconds = sum(k.get(DURATION, 0.0) for k in kernels) / steps
    return {
        "kernels": len(kernels) / steps,
        "names": sorted({k["kernel"][:80] for k in kernels}),
        "bytes_read": read,
        "bytes_written": written,
        "bytes": read + written,
        "device_ms": 1e3 * seconds,
        "tb_per_s": (read + written) * elements / seconds / 1e12 if seconds else None,
    }
