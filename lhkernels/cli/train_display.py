"""A training on a terminal: a line per epoch, live bars below, a table at the end.

Where output is no terminal only the lines and the table are printed, without control codes.
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lhkernels.tables import table
from lhkernels.training.config import TrainConfig
from lhkernels.training.data import ImageData, steps_per_epoch
from lhkernels.training.loop import Run
from lhkernels.training.trainer import Observer

COLUMN = 16  # characters for an optimizer's loss and error in an epoch's line


class Display(Observer):
    """Prints to ``console``; ``progress=False`` leaves only the table at the end."""

    def __init__(self, console: Console, progress: bool = True) -> None:
        self.console, self.lines = console, progress
        live = progress and console.is_terminal and not console.is_dumb_terminal
        # A long memory: the speed is that of all epochs alike.
        self.bars = Progress(
            *Progress.get_default_columns(), console=console, transient=True, disable=not live,
            speed_estimate_period=3600,
        )  # fmt: skip

    def start(self, config: TrainConfig, data: ImageData, device: torch.device) -> None:
        self.config, self.data = config, data
        images, channels, height, width = data.train_images.shape
        where = f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
        self._line(
            f"{config.data}: {images} training and {len(data.test_labels)} test images, "
            f"{channels}x{height}x{width}\n"
            f"{config.model}, batches of {config.batch_size}, on {where}"
        )

    def start_seed(self, runs: list[Run]) -> None:
        several = {
            "initial weights x": (self.config.init_scales, runs[0].key.init_scale),
            "seed": (self.config.seeds, runs[0].seed),
        }
        titles = [f"{name} {now:g}" for name, (values, now) in several.items() if len(values) > 1]
        if titles:
            self._line("\n" + ", ".join(titles))
        names = "".join(run.name.rjust(COLUMN) for run in runs)
        self._line(f"epoch   {names}\n        " + "loss   error".rjust(COLUMN) * len(runs))
        for task in self.bars.task_ids:
            self.bars.remove_task(task)
        self.steps = steps_per_epoch(self.data, self.config)
        self.tasks = {run.name: self.bars.add_task(run.name, total=self.steps) for run in runs}
        self.done = sum(len(run.history) for run in runs)
        total = self.config.epochs * len(runs)
        self.all = self.bars.add_task("all epochs", total=total, completed=self.done)
        self.bars.start()

    def batch(self, run: Run, step: int, loss: float) -> None:
        text = f"{run.name}  loss {short(loss)}"
        self.bars.update(self.tasks[run.name], completed=step, description=text)
        self.bars.update(self.all, completed=self.done + step / self.steps)

    def epoch(self, runs: list[Run], epoch: int) -> None:
        self.done += 1
        if not all(len(run.history) >= epoch or run.diverged for run in runs):
            return
        # With several scales it is their last epochs that are compared.
        if len(self.config.init_scales) == 1 or epoch == self.config.epochs:
            cells = "".join(epoch_cell(run, epoch) for run in runs)
            self._line(f"{epoch:>3}/{self.config.epochs:<4}{cells}")

    def finish(self, report: dict[str, Any]) -> None:
        self.bars.stop()
        utf = self.console.encoding.lower().startswith("utf")
        self.console.print("", summary_table(report, "±" if utf else "+-"), "", sep="\n")
        for run in report["runs"]:
            if run["status"] == "diverged":
                scale = f"scale {run['init_scale']:g}, " * (len(self.config.init_scales) > 1)
                self._print(
                    f"{run['optimizer']} diverged in epoch {run['diverged_in_epoch']} "
                    f"({scale}seed {run['seed']}): try a smaller --lr for it"
                )

    def _line(self, text: str) -> None:
        if self.lines:
            self._print(text)

    def _print(self, text: str) -> None:
        # Plain: rich would colour the numbers and read [brackets] as markup.
        self.console.print(text, highlight=False, markup=False)


def epoch_cell(run: Run, epoch: int) -> str:
    """Loss and error of one optimizer in one epoch, right-aligned in COLUMN characters."""
    text = "-"
    if len(run.history) >= epoch:
        loss, error = (run.history[epoch - 1][name] for name in ("train_loss", "test_error"))
        text = "diverged" if loss is None else f"{short(loss)} {percent(error):>7}"
    return text.rjust(COLUMN)


def short(loss: float) -> str:
    """Four decimals, but no row of digits for the loss of a network on its way to diverging."""
    return f"{loss:.4f}" if loss < 1000 else f"{loss:.0e}"


def percent(share: float) -> str:
    return f"{100 * share:.2f}%"


# The table's figures: heading, and how each is written.
SHOWN = {
    "final_train_loss": ("train\nloss", short),
    "final_test_error": ("test\nerror", percent),
    "best_test_error": ("best\nerror", percent),
    "seconds_per_epoch": ("s per\nepoch", "{:.2f}".format),
}


def summary_table(report: dict[str, Any], plus_minus: str) -> Table:
    """A row per scale and optimizer; with several seeds the std of each figure below its mean."""
    seeds = len(report["config"]["seeds"])
    scales = len({row["init_scale"] for row in report["summary"]}) > 1
    # The scale takes the place of the best error.
    shown = {name: how for name, how in SHOWN.items() if not scales or name != "best_test_error"}
    columns = ["init\nscale"] * scales + ["optimizer", "lr", *(head for head, _ in shown.values())]
    rows = []
    for row in report["summary"]:
        cells = [f"{row['init_scale']:g}"] * scales + [row["optimizer"], f"{row['lr']:g}"]
        if row["diverged"]:
            cells[-2] += "\ndiverged" if seeds == 1 else f"\n{row['diverged']} diverged"
        for figure, (_, write) in shown.items():
            known = [write(part) for part in row[figure].values() if part is not None]
            cells.append(f"\n{plus_minus} ".join(known) or "-")
        rows.append(cells)
    title = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else None
    return table(columns, rows, title=title, left=(int(scales),))
