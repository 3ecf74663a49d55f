"""The training study: SGD beside scale-amended SGD, from runs to tables and plots.

    python bench/study.py --preset small --data fashion-mnist --out DIR [--only figure1,heatmap]

Writes to --out: runs.jsonl (a line per finished run, keyed by its configuration; a second call
trains only what is missing), environment.json, summary.md, summary.json and study-*.png. Needs no
network and no installation of this package.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lhkernels.training import TrainingError  # noqa: E402
from lhkernels.training.config import DATA, DEVICES, TrainConfig  # noqa: E402
from lhkernels.training.experiments import PARTS, PRESETS, Cells, Experiments  # noqa: E402
from lhkernels.training.loop import pick_device  # noqa: E402
from lhkernels.training.report import environment  # noqa: E402
from lhkernels.training.study import check_packages  # noqa: E402
from lhkernels.training.sweep import Result, ResultFile, relative_cost, run_all  # noqa: E402
from lhkernels.training.sweep_summary import choose_lr, missing_runs, summarise  # noqa: E402
from lhkernels.training.sweep_tables import to_markdown  # noqa: E402

EPILOG = """\
presets:
  small  a VGG of 5 convolutions, 6000 images of 14x14 (28x28 halved), 8 epochs: an hour of one core
  full   VGG13, 20000 images of 32x32, 8 to 20 epochs: sized for one H100, minutes a part

exit status: 0 done, 1 runs are still missing (--minutes, --plots-only), 2 an option or a file is
wrong, 130 interrupted (finished runs are saved; the same command goes on)
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", choices=PRESETS, default="small")
    p.add_argument("--data", choices=DATA, default="fashion-mnist")
    p.add_argument("--data-folder", metavar="DIR", help="folder of the data set's files")
    p.add_argument("--device", choices=DEVICES, default="auto")
    p.add_argument("--out", metavar="DIR", type=Path, help="(default: runs/study-PRESET-DATA)")
    p.add_argument("--images", metavar="DIR", type=Path, help="folder of the plots (default: out)")
    p.add_argument("--only", metavar="A,B", help=f"parts: {','.join(PARTS)} (default: all)")
    p.add_argument("--plots-only", action="store_true", help="train nothing; summary and plots")
    p.add_argument("--jobs", type=positive, metavar="N", help="runs at a time (default: 1)")
    p.add_argument("--minutes", type=float, metavar="M", help="start no run after M minutes")
    for name in ("epochs", "limit"):
        p.add_argument(f"--{name}", type=positive, metavar="N", help="in place of the preset's")
    return p


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, summarise and draw; the exit status."""
    args = parser().parse_args(argv)
    try:
        return Study(args).execute()
    except TrainingError as error:
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
        check_packages(next(iter(self.experiments.tuning().values()))[0])
        self.out: Path = args.out or Path(f"runs/study-{args.preset}-{args.data}")
        self.images: Path = args.images or self.out
        for folder in (self.out, self.images):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"{folder}: can not be made ({error.strerror})") from error
        self.file = ResultFile(self.out / "runs.jsonl")
        self.until = args.minutes and time.monotonic() + 60 * args.minutes

    def execute(self) -> int:
        if not self.args.plots_only:
            self.train()
        return self.conclude()

    def train(self) -> None:
        """The runs that are missing: those that choose the learning rates before all others."""
        device = pick_device(self.args.device)
        check_environment(self.out / "environment.json", environment(device), self.args.jobs or 1)
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

    def run(self, cells: Cells, part: str, device: Any) -> None:
        configs = [config for cell in cells.values() for config in cell]
        progress = Progress(part, [config for config in configs if config not in self.file])
        jobs = self.args.jobs or 1
        run_all(configs, self.file, device, jobs=jobs, until=self.until, report=progress)

    def conclude(self) -> int:
        """Summary and plots of the complete parts; 1 if another one was asked for."""
        from lhkernels.training.sweep_plots import draw

        parts = {part: self.cells(part) for part in PARTS}
        lacking = {
            part: missing_runs(cells, self.file) if cells else None for part, cells in parts.items()
        }
        complete = {part: cells for part, cells in parts.items() if cells and lacking[part] == 0}
        summary = summarise(self.experiments, complete, self.file)
        summary["environment"] = read_environment(self.out / "environment.json")
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        (self.out / "summary.md").write_text(to_markdown(summary))
        for part in complete:
            draw(part, summary, self.file, complete[part], self.images / f"study-{part}.png")
        for part in self.parts:
            if part not in complete:
                count = lacking[part]
                what = (
                    "the runs that choose its learning rates" if count is None else f"{count} runs"
                )
                print(f"{part}: lacks {what}; not summarised", file=sys.stderr)
        print(f"{', '.join(complete) or 'nothing'}: {self.out / 'summary.md'}", file=sys.stderr)
        return 0 if all(part in complete for part in self.parts) else 1


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


def check_environment(path: Path, here: dict[str, Any], jobs: int) -> None:
    """Note where the runs are made; refuse to mix those of two machines in one folder."""
    here = {name: value for name, value in here.items() if name != "platform"}
    here["threads"], here["jobs"] = 1, jobs
    if path.exists():
        there = read_environment(path) or {}
        for name in ("device", "gpu", "cpu", "torch"):
            if there.get(name) != here[name]:
                raise TrainingError(
                    f"--out {path.parent}: its runs were made with {name} {there.get(name)}, here "
                    f"it is {here[name]}; name another --out"
                )
    path.write_text(json.dumps(here, indent=1) + "\n")


def read_environment(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise TrainingError(f"{path}: is damaged ({error}); delete it") from error


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
