"""A training on a terminal: a line per epoch, live bars below, a table at the end.

Where output is no terminal only the lines and the table are printed, without control codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
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
        self.bars = Bars(console) if live else None

    def start(self, config: TrainConfig, data: ImageData, device: torch.device) -> None:
        self.config, self.data = config, data
        if not self.lines:
            return
        images, channels, height, width = data.train_images.shape
        where = f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
        self._print(
            f"{config.data}: {images} training and {len(data.test_labels)} test images, "
            f"{channels}x{height}x{width}\n"
            f"{config.model}, batches of {config.batch_size}, on {where}"
        )

    def start_seed(self, runs: list[Run]) -> None:
        if not self.lines:
            return
        several = {
            "initial weights x": (self.config.init_scales, runs[0].key.init_scale),
            "seed": (self.config.seeds, runs[0].seed),
        }
        titles = [f"{name} {now:g}" for name, (values, now) in several.items() if len(values) > 1]
        if titles:
            self._print("\n" + ", ".join(titles))
        names = "".join(run.name.rjust(COLUMN) for run in runs)
        self._print(f"epoch   {names}\n        " + "loss   error".rjust(COLUMN) * len(runs))
        if self.bars:
            self.bars.start(runs, steps_per_epoch(self.data, self.config), self.config.epochs)

    def batch(self, run: Run, step: int, loss: float) -> None:
        if self.bars:
            self.bars.batch(run, step, loss)

    def epoch(self, runs: list[Run], epoch: int) -> None:
        if self.bars:
            self.bars.epoch()
        done = all(len(run.history) >= epoch or run.diverged for run in runs)
        # With several scales it is their last epochs that are compared.
        compared = len(self.config.init_scales) == 1 or epoch == self.config.epochs
        if self.lines and done and compared:
            cells = "".join(epoch_cell(run, epoch) for run in runs)
            self._print(f"{epoch:>3}/{self.config.epochs:<4}{cells}")

    def finish(self, report: dict[str, Any]) -> None:
        if self.bars:
            self.bars.progress.stop()
        utf = self.console.encoding.lower().startswith("utf")
        self.console.print("", summary_table(report, "±" if utf else "+-"), "", sep="\n")
        for run in report["runs"]:
            if run["status"] == "diverged":
                scale = f"scale {run['init_scale']:g}, " * (len(self.config.init_scales) > 1)
                self._print(
                    f"{run['optimizer']} diverged in epoch {run['diverged_in_epoch']} "
                    f"({scale}seed {run['seed']}): try a smaller --lr for it"
                )

    def _print(self, text: str) -> None:
        # Plain: rich would colour the numbers and read [brackets] as markup.
        self.console.print(text, highlight=False, markup=False)


class Bars:
    """A bar for each optimizer's epoch under way, and one for all epochs of the seed."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.fields[note]}"),
            console=console,
            expand=True,
            transient=True,
        )
        self.tasks: dict[str, TaskID] = {}

    def start(self, runs: list[Run], steps: int, epochs: int) -> None:
        for task in self.progress.task_ids:
            self.progress.remove_task(task)
        add = self.progress.add_task
        self.tasks = {run.name: add(run.name, total=steps, note="") for run in runs}
        self.before = self.done = sum(len(run.history) for run in runs)
        self.total = epochs * len(runs)
        self.all = add("epochs", total=self.total, completed=self.done, note="")
        self.started = time.monotonic()
        self.progress.start()

    def batch(self, run: Run, step: int, loss: float) -> None:
        self.progress.update(self.tasks[run.name], completed=step, note=f"loss {short(loss)}")

    def epoch(self) -> None:
        self.done += 1
        pace = (time.monotonic() - self.started) / (self.done - self.before)
        minutes, seconds = divmod(round(pace * (self.total - self.done)), 60)
        self.progress.update(self.all, completed=self.done, note=f"{minutes}:{seconds:02} left")


def epoch_cell(run: Run, epoch: int) -> str:
    """Loss and error of one optimizer in one epoch, right-aligned in COLUMN characters."""
    if len(run.history) < epoch:
        return "-".rjust(COLUMN)
    record = run.history[epoch - 1]
    if record["train_loss"] is None:
        return "diverged".rjust(COLUMN)
    return f"{short(record['train_loss'])} {percent(record['test_error']):>7}".rjust(COLUMN)


def short(loss: float) -> str:
    """Four decimals, but no row of digits for the loss of a network on its way to diverging."""
    return f"{loss:.4f}" if loss < 1000 else f"{loss:.0e}"


def percent(share: float) -> str:
    return f"{100 * share:.2f}%"


# The table's figures: heading, and how each is written.
SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
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
        name = row["optimizer"]
        if row["diverged"]:
            name += "\ndiverged" if seeds == 1 else f"\n{row['diverged']} diverged"
        figures = []
        for figure, (_, show) in shown.items():
            known = [show(part) for part in row[figure].values() if part is not None]
            figures.append(f"\n{plus_minus} ".join(known) or "-")
        rows.append([f"{row['init_scale']:g}"] * scales + [name, f"{row['lr']:g}", *figures])
    title = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else None
    return table(columns, rows, title=title, left=(int(scales),))
