"""Several optimizers side by side: same initialisation, same batches, an epoch of each in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import torch

from lhkernels.training.config import RunKey, TrainConfig
from lhkernels.training.data import ImageData, load
from lhkernels.training.errors import ConfigError, TrainingError, shown
from lhkernels.training.folder import RunFolder
from lhkernels.training.loop import Run, build_model, check_packages, has_diverged, pick_device
from lhkernels.training.report import Histories, make_report

MOVABLE = ("epochs", "data_dir")  # what a resumed run may have otherwise


class Observer:
    """Is told how a training goes; the base class takes no notice."""

    def start(self, config: TrainConfig, data: ImageData, device: torch.device) -> None: ...

    def start_seed(self, runs: list[Run]) -> None: ...

    def batch(self, run: Run, step: int, loss: float) -> None: ...

    def epoch(self, runs: list[Run], epoch: int) -> None:
        """One of ``runs``, which take turns, has done its epoch."""

    def finish(self, report: dict[str, Any]) -> None: ...


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Train every optimizer of ``config`` for every seed; write and return the report.

    Whatever stops it, ``out`` holds all finished epochs, and ``resume`` goes on from there: bit for
    bit as if it had not stopped, on a CPU with as many threads. KeyboardInterrupt passes through
    once the report and the curves are written.
    """
    folder = RunFolder(out)
    # Options first: what is wrong with them is not to be hidden by what is wrong with the folder.
    if resume and overwrite:
        raise TrainingError("--resume and --overwrite exclude each other; give one of them")
    check_packages(config)
    if resume:
        resumed_config(folder, vars(config))
    device = pick_device(config.device)
    with enough_memory():
        data = load(config).to(device)
        check_memory(config, data, device)
        with folder.locked():
            if not resume and not overwrite and folder.holds_run():
                raise TrainingError(
                    f"--out {folder.path}: holds a run already; go on with it by --resume, replace "
                    "it by --overwrite, or name another folder"
                )
            return Trainer(config, folder, data, device, observer or Observer()).train(resume)


@dataclass
class Trainer:
    """One call of ``train``: the runs, their records, their files."""

    config: TrainConfig
    folder: RunFolder
    data: ImageData
    device: torch.device
    observer: Observer
    histories: Histories = field(default_factory=dict)

    def train(self, resume: bool) -> dict[str, Any]:
        if not resume:
            self.folder.clear()
        # The checkpoints are the truth: metrics.jsonl and the report are made anew from them.
        for key in self.config.run_keys():
            if (state := self.folder.load_checkpoint(key, self.device)) is not None:
                self.histories[key] = state["history"]
        # Until it is finished the report says "interrupted", which is then true of a killed run.
        self._write_figures()
        self.observer.start(self.config, self.data, self.device)
        try:
            for keys in self._groups():
                if not all(map(self._complete, keys)):
                    self._train_side_by_side([self._make_run(key) for key in keys])
        finally:
            self.observer.finish(self._report())
            report = self._write_figures()
            if any(self.histories.values()):
                from lhkernels.training.plots import draw_curves

                self.folder.write(self.folder.curves, draw_curves(self.config, self.histories))
        return report

    def _groups(self) -> Iterator[list[RunKey]]:
        """The runs of each scale and seed, which are trained side by side."""
        for scale, seed in product(self.config.init_scales, self.config.seeds):
            yield [RunKey(scale, seed, name) for name in self.config.optimizers]

    def _train_side_by_side(self, runs: list[Run]) -> None:
        self.observer.start_seed(runs)
        for epoch in range(1, self.config.epochs + 1):
            due = [run for run in runs if len(run.history) < epoch and not run.diverged]
            for run in due:
                record = run.run_epoch(partial(self.observer.batch, run))
                self.folder.save_checkpoint(run.key, run.state_dict())
                self.histories[run.key] = run.history
                self.folder.append_metrics(record)
                self.observer.epoch(runs, epoch)
            if due:
                self.folder.write_report(self._report())

    def _make_run(self, key: RunKey) -> Run:
        run = Run(self.config, key, self.data, self.device)
        if (state := self.folder.load_checkpoint(key, self.device)) is not None:
            try:
                run.load_state_dict(state)
            except Exception as error:  # torch's loaders raise many kinds for parts that do not fit
                what = "does not fit the run's network and optimizer"
                raise self.folder.damaged_checkpoint(key, what) from error
        return run

    def _complete(self, key: RunKey) -> bool:
        history = self.histories.get(key, [])
        return has_diverged(history) or len(history) >= self.config.epochs

    def _report(self) -> dict[str, Any]:
        return make_report(self.config, self.histories, self.device)

    def _write_figures(self) -> dict[str, Any]:
        """metrics.jsonl in the order of an uninterrupted run, and the report."""
        columns = ([self.histories.get(key, []) for key in keys] for keys in self._groups())
        records = [r for c in columns for epoch in zip_longest(*c) for r in epoch if r is not None]
        self.folder.write_metrics(records)
        report = self._report()
        self.folder.write_report(report)
        return report


def check_memory(config: TrainConfig, data: ImageData, device: torch.device) -> None:
    """Ask for all weights, gradients and momenta in one piece, which the system refuses at once; in
    small pieces it grants more than it has, and ends the process when they are filled."""
    with torch.device("meta"):  # no memory yet
        model = build_model(config, data, seed=0)
    numbers = 3 * len(config.optimizers) * sum(p.numel() for p in model.parameters())
    torch.empty(numbers, device=device)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Tell without a traceback of an allocation that failed: Python's, CUDA's, torch's on a CPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not of_memory and "DefaultCPUAllocator" not in str(error):
            raise
        raise TrainingError(
            "not enough memory; give a smaller --model, --width, --depth or --batch-size"
        ) from error


def resumed_config(folder: RunFolder, options: Mapping[str, Any]) -> TrainConfig:
    """The options of the run in ``folder``, of which ``options`` may repeat any, and change the
    number of epochs, upwards, and the place of the data."""
    stored = folder.stored_config()
    # lr last: its default follows from other options, which are the ones to name if they differ.
    for name in sorted(options, key=lambda name: name == "lr"):
        old, new = getattr(stored, name), options[name]
        if name == "lr":  # one number stands for all; a mapping may leave some out
            new = {**old, **(new if isinstance(new, Mapping) else dict.fromkeys(old, new))}
        if name == "epochs" and new < old:
            raise ConfigError(name, new, f"the run to resume has {old}; epochs may only grow")
        if name not in MOVABLE and new != old:
            remedy = f"the run to resume has {shown(old)}; give that, or another --out"
            raise ConfigError(name, new, remedy)
    return replace(stored, **{name: options[name] for name in MOVABLE if name in options})
