"""Training from badly scaled initial weights: the learning rates, the comparison, their neighbours.

    python bench/scales.py digits --out DIR

Multiplies the initial weights that batch normalisation follows by each of ``SCALES``. One grid of
learning rates for both optimizers, extended while an end of it is the best. The best has the lowest
mean loss on held-out training images, over ``TUNING_SEEDS``; the comparison then takes ``SEEDS``,
and the test of the neighbouring rates ``CHECK_SEEDS``. The test images are looked at once, at the
end of a run, and decide nothing.

Writes to --out: runs.jsonl (a line per finished run; a second call trains only what is missing),
environment.json and summary.md, and prints the summary.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from study import Progress, check_environment, make_folder, positive  # noqa: E402

from lhkernels import environment  # noqa: E402
from lhkernels.training import TrainConfig, TrainingError  # noqa: E402
from lhkernels.training.loop import check_packages  # noqa: E402
from lhkernels.training.sweep import ResultFile, run_all  # noqa: E402

NAMES = {"sgd": "`torch.optim.SGD`", "sa-sgd": "`ScaleAmendedSGD`"}
TUNING_SEEDS, SEEDS, CHECK_SEEDS = range(100, 105), range(5), range(200, 205)
GRID = range(-6, 1)  # rungs of the ladder ..., 0.001, 0.003, 0.01, ..., 0.3, 1, ...

# What `train` has as its defaults, and `make demo` and the README show.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "digits": {"data": "digits", "validation": 300},
    "digits-no-decay": {"data": "digits", "validation": 300, "weight_decay": 0.0},
    "fashion-mnist": {
        "data": "fashion-mnist", "validation": 2000, "limit": 6000, "shrink": 2, "epochs": 5,
    },
}  # fmt: skip
SCALES: Mapping[str, tuple[float, ...]] = {
    "digits": (0.1, 0.3, 1.0, 3.0, 10.0),
    "digits-no-decay": (0.1, 0.3, 1.0, 3.0, 10.0),
    "fashion-mnist": (0.1, 1.0, 10.0),
}

Cell = list[TrainConfig]  # one optimizer, learning rate and scale; a run per seed


def rate(rung: int) -> float:
    return float(f"{(1, 3)[rung % 2]}e{rung // 2}")


class Scales:
    """The runs of one setting; ``table``, ``tuned`` and ``neighbours`` say what they show."""

    def __init__(self, setting: str, file: ResultFile, jobs: int) -> None:
        self.setting, self.file, self.jobs = setting, file, jobs
        self.tuning: dict[tuple[float, str, float], Cell] = {}  # (scale, optimizer, lr)
        self.best = self.tune(1.0, tuple(NAMES))
        self.anew = {scale: self.tune(scale, ("sgd",))["sgd"] for scale in SCALES[setting]}
        self.compared = {
            (name, scale): self.cell(name, self.best[name], scale, SEEDS)
            for name in NAMES
            for scale in SCALES[setting]
        }
        self.retuned = {s: self.cell("sgd", lr, s, SEEDS) for s, lr in self.anew.items()}
        self.around = {
            name: [self.cell(name, lr, 1.0, CHECK_SEEDS) for lr in (best / 3, best, best * 3)]
            for name, best in self.best.items()
        }
        self.train("comparison", [*self.compared.values(), *self.retuned.values()])
        self.train("neighbours", [cell for cells in self.around.values() for cell in cells])

    def cell(self, name: str, lr: float, scale: float, seeds: Iterable[int]) -> Cell:
        options = {**SETTINGS[self.setting], "init_scale": scale, "optimizers": (name,)}
        lr = float(f"{lr:.1g}")  # 0.1 / 3 is 0.03 here
        return [TrainConfig(**options, lr={name: lr}, seeds=(seed,)) for seed in seeds]

    def tune(self, scale: float, names: Sequence[str]) -> dict[str, float]:
        """Each optimizer's learning rate with the lowest mean held-out loss."""
        low, high = GRID[0], GRID[-1]
        while True:
            rates = [rate(rung) for rung in range(low, high + 1)]
            cells = {
                (scale, name, lr): self.cell(name, lr, scale, TUNING_SEEDS)
                for name in names
                for lr in rates
            }
            self.tuning |= cells
            self.train(f"tuning at scale {scale:g}", cells.values())
            best = {
                name: min(rates, key=lambda lr: self.mean(cells[scale, name, lr])) for name in names
            }
            if rates[-1] in best.values():
                high += 1
            elif rates[0] in best.values():
                low -= 1
            else:
                return best

    def train(self, what: str, cells: Iterable[Cell]) -> None:
        due = self.file.missing(config for cell in cells for config in cell)
        progress = Progress(what, due)
        run_all(due, self.file, torch.device("cpu"), jobs=self.jobs, report=progress)

    def finals(self, cell: Cell, figure: str) -> list[float]:
        """One number per seed; infinite for a run that diverged."""
        values = (self.file[config]["final"][figure] for config in cell)
        return [math.inf if value is None else value for value in values]

    def mean(self, cell: Cell, figure: str = "validation_loss") -> float:
        return fmean(self.finals(cell, figure))

    def shown(self, cell: Cell) -> str:
        """Train loss and test error: mean and standard deviation of the seeds."""
        losses, errors = self.finals(cell, "train_loss"), self.finals(cell, "test_error")
        if math.inf in losses:
            return f"{losses.count(math.inf)} of {len(losses)} diverged"
        percent = [100 * error for error in errors]
        return (
            f"{fmean(losses):.4f} ± {stdev(losses):.4f}<br>"
            f"{fmean(percent):.1f} % ± {stdev(percent):.1f}"
        )

    def table(self) -> str:
        """The README's: one lr for all scales, and SGD tuned anew for each."""
        scales = SCALES[self.setting]
        rows = [["initial weights x", "lr", *(f"{scale:g}" for scale in scales)]]
        for name, title in NAMES.items():
            cells = (self.shown(self.compared[name, scale]) for scale in scales)
            rows.append([title, f"{self.best[name]:g}", *cells])
        cells = (f"{self.shown(self.retuned[s])}<br>lr {self.anew[s]:g}" for s in scales)
        rows.append(["SGD, tuned anew for each", "", *cells])
        return markdown(rows)

    def tuned(self) -> str:
        """Mean held-out loss of every learning rate that was tried."""
        rates = sorted({lr for _, _, lr in self.tuning}, reverse=True)
        rows = [["scale", "", *(f"{lr:g}" for lr in rates)]]
        for scale, name in dict.fromkeys(key[:2] for key in self.tuning):
            means = {
                lr: self.mean(c) for (s, n, lr), c in self.tuning.items() if (s, n) == (scale, name)
            }
            best = min(means, key=means.__getitem__)
            shown = {lr: "diverged" if m == math.inf else f"{m:.3f}" for lr, m in means.items()}
            shown[best] = f"**{shown[best]}**"
            rows.append([f"{scale:g}", name, *(shown.get(lr, "") for lr in rates)])
        return markdown(rows)

    def neighbours(self) -> str:
        """Held-out loss at a third of the chosen rate, at it, at three times it, on fresh seeds."""
        rows = [["held-out loss, scale 1", "lr / 3", "lr", "lr * 3"]]
        for name, cells in self.around.items():
            losses = [describe(self.finals(cell, "validation_loss")) for cell in cells]
            rates = [f"{cell[0].lr[name]:g}" for cell in cells]
            rows.append([name, *(map(": ".join, zip(rates, losses, strict=True)))])
        return markdown(rows)

    def summary(self) -> str:
        options = ", ".join(f"{key} {value}" for key, value in SETTINGS[self.setting].items())
        return f"""\
# Initial scale: {self.setting}

`python bench/scales.py {self.setting} --out DIR`: {options}; otherwise the defaults of `train`.
Mean ± standard deviation.

## Learning rates: mean held-out loss, seeds {seeds(TUNING_SEEDS)}

{self.tuned()}

## Comparison, seeds {seeds(SEEDS)}: final train loss, test error

{self.table()}

## Neighbouring learning rates, seeds {seeds(CHECK_SEEDS)}

{self.neighbours()}
"""


def describe(finals: list[float]) -> str:
    diverged = finals.count(math.inf)
    if diverged:
        return f"{diverged} of {len(finals)} diverged"
    return f"{fmean(finals):.4f} ± {stdev(finals):.4f}"


def seeds(numbers: range) -> str:
    return f"{numbers[0]} to {numbers[-1]}"


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time")
    args = parser.parse_args(argv)
    try:
        check_packages(TrainConfig(**SETTINGS[args.setting]))
        make_folder("--out", args.out)
        file = ResultFile(args.out / "runs.jsonl")
        check_environment(
            args.out / "environment.json", environment.describe(torch.device("cpu")), args.jobs
        )
        summary = Scales(args.setting, file, args.jobs).summary()
        (args.out / "summary.md").write_text(summary)
    except (TrainingError, OSError) as error:
        print(f"scales: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; finished runs are saved. The same command goes on.", file=sys.stderr)
        return 130
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
