"""The training study: SGD beside scale-amended SGD, from runs to tables and plots.

    python bench/study.py --preset small --data fashion-mnist --out DIR [--only figure1,heatmap]

Writes to --out: runs.jsonl (a line per finished run, keyed by its configuration; a second call
trains only what is missing), environment.json, summary.md, summary.json and study-*.png. Needs no
network and no installation of this package.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lhkernels import environment  # noqa: E402
from lhkernels.training import TrainingError  # noqa: E402
from lhkernels.training.config import DATA, DEVICES, TrainConfig  # noqa: E402
from lhkernels.training.experiments import PARTS, PRESETS, Cells, Experiments  # noqa: E402
from lhkernels.training.loop import check_packages, pick_device  # noqa: E402
from lhkernels.training.sweep import (  # noqa: E402
    Result,
    ResultFile,
    load_once,
    relative_cost,
    run_all,
)
from lhkernels.training.sweep_summary import choose_lr, missing_runs, summarise  # noqa: E402
from lhkernels.training.sweep_tables import to_markdown  # noqa: E402

EPILOG = """\
presets:
  small  a VGG of 5 convolutions, 6000 images of 14x14 (28x28 halved), 8 or 16 epochs: half an hour
         of one core
  full   VGG13, 20000 images of 32x32, 8 or 20 epochs: sized for one H100, minutes a part

exit status: 0 done, 1 runs are still missing (--minutes, --plots-only), 2 an option or a file is
wrong, 130 interrupted (finished runs are saved; the same command goes on)
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", choices=PRESETS, default="small")
    p.add_argument("--data", choices=DATA, default="fashion-mnist")
    p.add_argument(
        "--data-folder", "--data-dir", metavar="DIR", help="folder of the data set's files"
    )
    p.add_argument("--device", choices=DEVICES, default="auto")
    p.add_argument("--out", metavar="DIR", type=Path, help="(default: runs/study-PRESET-DATA)")
    p.add_argument("--images", metavar="DIR", type=Path, help="folder of the plots (default: out)")
    p.add_argument("--only", metavar="A,B", help=f"parts: {','.join(PARTS)} (default: all)")
    p.add_argument("--plots-only", action="store_true", help="train nothing; summary and plots")
    p.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="runs at a time (default: 1)"
    )
    p.add_argument("--minutes", type=duration, metavar="M", help="start no run after M minutes")
    for name in ("epochs", "limit"):
        p.add_argument(f"--{name}", type=positive, metavar="N", help="in place of the preset's")
    return p


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, at least 1")
    return int(text)


def duration(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a number of minutes above 0")
    return minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, summarise and draw; the exit status."""
    args = parser().parse_args(argv)
    try:
        return Study(args).execute()
    except (TrainingError, OSError) as error:
        print(f"study: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; finished runs are saved. The same command goes on.", file=sys.stderr)
        return 130


class Study:
    """One call: the experiments, their results, and the folders both go to."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.parts = parse_parts(args.only)
        self.experiments = make_experiments(args)
        self.a_run = next(iter(self.experiments.tuning().values()))[0]
        check_packages(self.a_run)
        self.out: Path = args.out or Path(f"runs/study-{args.preset}-{args.data}")
        self.images: Path = args.images or self.out
        self.file = ResultFile(self.out / "runs.jsonl")
        self.until = args.minutes and time.monotonic() + 60 * args.minutes

    def execute(self) -> int:
        if not self.args.plots_only:
            self.train()
        elif not self.file.results:
            raise TrainingError(
                f"--out {self.out}: holds no runs to draw; name the folder that does, or leave out "
                "--plots-only to train them"
            )
        return self.conclude()

    def train(self) -> None:
        """The runs that are missing: those that choose the learning rates before all others."""
        if all(self.lacking(part) == [] for part in self.parts):
            return
        # What is wrong with them is told before anything is written.
        device = pick_device(self.args.device)
        load_once(self.a_run, torch.device("cpu") if self.args.jobs > 1 else device)
        make_folder("--out", self.out)
        check_environment(
            self.out / "environment.json", environment.describe(device), self.args.jobs
        )
        if "figure1" in self.parts:
            self.run(self.experiments.tuning(), "tuning", device)
        for part in self.parts:
            cells = self.cells(part)
            if cells is not None:
                self.run(cells, part, device)

    def cells(self, part: str) -> Cells | None:
        """The cells of a part; None for figure 1 before its learning rates are chosen."""
        if part != "figure1":
            return self.experiments.map_of(part)
        tuning = self.experiments.tuning()
        if missing_runs(tuning, self.file):
            return None
        return self.experiments.figure1(choose_lr(tuning, self.file))

    def lacking(self, part: str) -> list[TrainConfig] | None:
        """The runs that a part still needs; None for figure 1 before its learning rates."""
        cells = self.cells(part)
        return None if cells is None else missing_runs(cells, self.file)

    def run(self, cells: Cells, part: str, device: torch.device) -> None:
        due = missing_runs(cells, self.file)
        progress = Progress(part, due)
        run_all(due, self.file, device, jobs=self.args.jobs, until=self.until, report=progress)

    def conclude(self) -> int:
        """Summary and plots of the complete parts; 1 if another one was asked for."""
        complete = {}
        for part in PARTS:
            cells = self.cells(part)
            if cells is not None and not missing_runs(cells, self.file):
                complete[part] = cells
        for part in self.parts:
            if part not in complete:
                due = self.lacking(part)
                what = "the runs that choose its learning rates"
                what = what if due is None else f"{len(due)} runs"
                print(f"{part}: lacks {what}; not summarised", file=sys.stderr)
        if complete:  # else there may be a summary of other runs, which is not to be lost
            self.write(complete)
        return 0 if all(part in complete for part in self.parts) else 1

    def write(self, complete: dict[str, Cells]) -> None:
        from lhkernels.training.sweep_plots import draw

        make_folder("--images", self.images)
        summary = summarise(self.experiments, complete, self.file)
        summary["environment"] = read_environment(self.out / "environment.json")
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        (self.out / "summary.md").write_text(to_markdown(summary))
        for part, cells in complete.items():
            draw(part, summary, self.file, cells, self.images / f"study-{part}.png")
        print(f"{', '.join(complete)}: {self.out / 'summary.md'}", file=sys.stderr)


class Progress:
    """A line on stderr for every finished run, with the time that the part still takes."""

    def __init__(self, part: str, due: list[TrainConfig]) -> None:
        self.part, self.count, self.done = part, len(due), 0
        self.cost_left = sum(map(relative_cost, due))
        self.cost_done, self.start = 0.0, time.monotonic()
        if due:
            print(f"{part}: {self.count} runs", file=sys.stderr, flush=True)

    def __call__(self, config: TrainConfig, result: Result) -> None:
        cost = relative_cost(config)
        self.done, self.cost_done, self.cost_left = (
            self.done + 1, self.cost_done + cost, self.cost_left - cost,
        )  # fmt: skip
        left = (time.monotonic() - self.start) / self.cost_done * self.cost_left / 60
        print(
            f"{self.part} {self.done}/{self.count}: {describe(config)}: {outcome(result)}; "
            f"about {left:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


def describe(config: TrainConfig) -> str:
    (name,), (seed,) = config.optimizers, config.seeds
    shape = f"scale {config.init_scale:g} width {config.width:g} depth {config.depth}"
    return f"{name} lr {config.lr[name]:g} decay {config.weight_decay:g} {shape} seed {seed}"


def outcome(result: Result) -> str:
    if result["status"] == "diverged":
        return f"diverged in epoch {result['epochs']}"
    final = result["final"]
    return f"loss {final['train_loss']:.4f}, test error {100 * final['test_error']:.2f} %"


def parse_parts(text: str | None) -> list[str]:
    names = list(PARTS) if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PARTS:
            raise TrainingError(f"--only {text}: {name!r} is no part; parts: {', '.join(PARTS)}")
    return [part for part in PARTS if part in names]


def make_experiments(args: argparse.Namespace) -> Experiments:
    preset = PRESETS[args.preset]
    if args.epochs is not None:
        preset = replace(preset, epochs=args.epochs, map_epochs=args.epochs)
    options: dict[str, Any] = {"data": args.data, "data_dir": args.data_folder}
    if args.limit is not None:
        options["limit"] = args.limit
    return Experiments(preset, options)


def make_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"{option} {folder}: can not be made ({error.strerror}); name another folder"
        ) from error


def check_environment(path: Path, here: dict[str, Any], jobs: int) -> None:
    """Note where the runs are made; refuse to mix those of two machines in one folder."""
    here = {name: value for name, value in here.items() if name not in ("date", "platform")}
    here["threads"], here["jobs"] = 1, jobs
    if path.exists():
        there = read_environment(path) or {}
        for name in ("gpu", "cpu", "torch"):
            if there.get(name) != here[name]:
                raise TrainingError(
                    f"--out {path.parent}: its runs were made with {name} {there.get(name)}, here "
                    f"it is {here[name]}; name another --out"
                )
    path.write_text(json.dumps(here, indent=1) + "\n")


def read_environment(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
        raise ValueError("no object")
    except ValueError as error:
        raise TrainingError(f"{path}: is damaged ({error}); delete it") from error


if __name__ == "__main__":
    sys.exit(main())
