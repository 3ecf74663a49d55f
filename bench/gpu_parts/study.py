"""The training study's parts: ``bench/study.py``, in time to save its runs before the limit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_parts.runner import ROOT, Context, Failed, OutOfTime, Unavailable

STUDY = ("figure1", "heatmap", "heatmap-no-decay", "width", "depth")
WHOLE_IN_A_DRY_RUN = "depth"  # the one with the fewest runs: its summary and plot are made, too
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
OPTIONS: dict[str, Any] = {"data": None, "jobs": 2}
"""``bench/gpu.py``'s arguments replace them."""
SLACK = 45  # seconds for the runs that have begun, the summary and the plots


def study(name: str) -> Callable[[Context], None]:
    """One part of the training study; finished runs are kept, and a second call goes on."""

    def run(context: Context) -> None:
        script = ROOT / "bench" / "study.py"
        if not script.exists():
            raise Unavailable("bench/study.py is not there")
        data, folder, note = data_set(context)
        args = ["--preset", "small" if context.dry_run else "full", "--data", data]
        args += [*folder, "--device", context.device, "--only", name]
        # A folder for each data set: a summary is of one.
        args += ["--out", str(context.out / "study" / data), "--jobs", str(OPTIONS["jobs"])]
        whole = name == WHOLE_IN_A_DRY_RUN
        if context.dry_run:
            args += ["--epochs", "1", "--limit", "64", "--minutes", "2" if whole else "0.02"]
        else:  # ends by itself, runs and summary saved, before it is stopped
            args += ["--minutes", f"{max(context.left - SLACK, 5) / 60:.2f}"]
        context.data |= {"data": data, "note": note, "out": f"study/{data}"}
        status = context.execute([sys.executable, script, *args])
        summary = context.out / "study" / data / "summary.md"
        context.data["summary"] = summary.read_text() if summary.exists() else ""
        if status == 1 and context.dry_run and not whole:  # the time was meant to be short
            context.data["note"] += "; stopped after two runs"
            return
        if status == 1:
            raise OutOfTime(f"{name} lacks runs; the same command goes on: {context.last_line()}")
        if status:
            raise Failed(f"bench/study.py exited with {status}: {context.last_line()}")

    return run


def data_set(context: Context) -> tuple[str, list[str], str]:
    """The study's data set, the option that says where it is, and a remark."""
    if context.dry_run:
        return "digits", [], "dry run: scikit-learn's digits"
    name = OPTIONS["data"]
    if context.data_folder is not None:
        return name or "fashion-mnist", ["--data-folder", str(context.data_folder)], ""
    if name:
        return name, [], ""
    if FASHION_MNIST.is_dir():
        return "fashion-mnist", [], ""
    return "digits", [], "no --data-folder: scikit-learn's digits, 1797 images of 8x8, instead"
