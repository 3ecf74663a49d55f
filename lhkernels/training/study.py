"""Several optimizers side by side: same initialisation, same batches, an epoch of each in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lhkernels.training.config import TrainConfig
from lhkernels.training.data import ImageData, load
from lhkernels.training.errors import ConfigError, TrainingError
from lhkernels.training.folder import RunFolder
from lhkernels.training.loop import Record, Run, pick_device
from lhkernels.training.report import Histories, make_report


class Observer:
    """Is told how a study goes; the base class takes no notice."""

    def start(self, config: TrainConfig, data: ImageData, device: torch.device) -> None: ...

    def start_seed(self, runs: list[Run]) -> None: ...

    def batch(self, run: Run, step: int, loss: float) -> None: ...

    def epoch(self, run: Run, record: Record) -> None: ...

    def epoch_done(self, runs: list[Run], epoch: int) -> None: ...

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
    check_packages(config)
    device = pick_device(config.device)
    folder = RunFolder(out)
    check_folder(folder, config, resume, overwrite)
    data = load(config).to(device)
    return Study(config, folder, data, device, observer or Observer()).execute(resume)


class Study:
    """One call of ``train``: the runs, their records, their files."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        data: ImageData,
        device: torch.device,
        observer: Observer,
    ) -> None:
        self.config, self.folder, self.data = config, folder, data
        self.device, self.observer = device, observer
        self.histories: Histories = {}

    def execute(self, resume: bool) -> dict[str, Any]:
        self.folder.create()
        if resume:
            self._load_histories()
        else:
            self.folder.clear()
        # Until it is finished the report says "interrupted", which is then true of a killed run.
        self._write_figures()
        self.observer.start(self.config, self.data, self.device)
        try:
            for seed in self.config.seeds:
                self._train_seed(seed)
        finally:
            report = self._write_figures()
            self._draw()
            self.observer.finish(report)
        return report

    def _load_histories(self) -> None:
        """The checkpoints are the truth: metrics.jsonl and the report are made anew from them."""
        for seed in self.config.seeds:
            for name in self.config.optimizers:
                state = self.folder.load_checkpoint(name, seed, self.device)
                if state is not None:
                    self.histories[seed, name] = state["history"]

    def _train_seed(self, seed: int) -> None:
        if all(self._complete(seed, name) for name in self.config.optimizers):
            return
        runs = [self._make_run(name, seed) for name in self.config.optimizers]
        self.observer.start_seed(runs)
        for epoch in range(1, self.config.epochs + 1):
            due = [run for run in runs if len(run.history) < epoch and not run.diverged]
            for run in due:
                record = run.run_epoch(partial(self.observer.batch, run))
                self.folder.save_checkpoint(run.name, seed, run.state_dict())
                self.histories[seed, run.name] = run.history
                self.folder.append_metrics(record)
                self.observer.epoch(run, record)
            if due:
                self.folder.write_report(self._report())
                self.observer.epoch_done(runs, epoch)

    def _make_run(self, name: str, seed: int) -> Run:
        run = Run(self.config, name, seed, self.data, self.device)
        state = self.folder.load_checkpoint(name, seed, self.device)
        if state is not None:
            try:
                run.load_state_dict(state)
            except Exception as error:  # torch's loaders raise many kinds for parts that do not fit
                what = "does not fit the run's network and optimizer"
                raise self.folder.damaged_checkpoint(name, seed, what) from error
        return run

    def _complete(self, seed: int, name: str) -> bool:
        history = self.histories.get((seed, name), [])
        diverged = bool(history) and history[-1]["train_loss"] is None
        return diverged or len(history) >= self.config.epochs

    def _report(self) -> dict[str, Any]:
        return make_report(self.config, self.histories, self.device)

    def _write_figures(self) -> dict[str, Any]:
        """metrics.jsonl in the order of an uninterrupted run, and the report."""
        place = {name: i for i, name in enumerate(self.config.optimizers)}
        records = [record for history in self.histories.values() for record in history]
        seeds = {seed: i for i, seed in enumerate(self.config.seeds)}
        records.sort(key=lambda r: (seeds[r["seed"]], r["epoch"], place[r["optimizer"]]))
        self.folder.write_metrics(records)
        report = self._report()
        self.folder.write_report(report)
        return report

    def _draw(self) -> None:
        if any(self.histories.values()):
            from lhkernels.training.plots import draw_curves

            draw_curves(self.config, self.histories, self.folder.curves)


def check_packages(config: TrainConfig) -> None:
    """The packages a run needs on top of torch, asked for before it starts and not at its end."""
    needed = ["matplotlib"] + (["sklearn"] if config.data == "digits" else [])
    for name in needed:
        if find_spec(name) is None:
            raise TrainingError(f"the package {name} is missing: pip install lhkernels[demo]")
    if "lars" in config.optimizers and find_spec("pytorch_optimizer") is None:
        raise ConfigError(
            "optimizers", "lars", "needs another package: pip install pytorch_optimizer"
        )


def check_folder(folder: RunFolder, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    """Refuse to mix two runs in one folder."""
    if resume and overwrite:
        raise TrainingError("--resume and --overwrite exclude each other; give one of them")
    if resume:
        resumed_config(folder, vars(config))
    elif folder.holds_run() and not overwrite:
        raise TrainingError(
            f"--out {folder.path}: holds a run already; go on with it by --resume, replace it by "
            "--overwrite, or name another folder"
        )


def resumed_config(folder: RunFolder, options: Mapping[str, Any]) -> TrainConfig:
    """The options of the run in ``folder``, of which ``options`` may repeat any.

    They may change only the number of epochs, upwards, and the place of the data.
    """
    stored = stored_config(folder)
    # lr last: its default follows from other options, which are the ones to name if they differ.
    for field in sorted(options, key=lambda field: field == "lr"):
        old, new = getattr(stored, field), options[field]
        if field == "lr":  # one number stands for all; a mapping may leave some out
            new = {**old, **(new if isinstance(new, Mapping) else dict.fromkeys(old, new))}
        if field == "epochs" and new < old:
            raise ConfigError(field, new, f"the run to resume has {old}; epochs may only grow")
        if field not in ("epochs", "data_dir") and new != old:
            remedy = f"the run to resume has {shown(old)}; give that, or another --out"
            raise ConfigError(field, shown(new), remedy)
    movable = {name: options[name] for name in ("epochs", "data_dir") if name in options}
    return replace(stored, **movable)


def stored_config(folder: RunFolder) -> TrainConfig:
    """The options that the run in ``folder`` was started with."""
    if not folder.holds_run():
        raise TrainingError(f"--resume: there is no run in --out {folder.path}; leave out --resume")
    try:
        return TrainConfig(**folder.read_report()["config"])
    except (KeyError, TypeError, ConfigError) as error:
        raise TrainingError(
            f"{folder.report}: was changed, or written by another version ({error}); "
            "use --overwrite"
        ) from error


def shown(value: Any) -> str:
    """An option's value as one would type it."""
    if isinstance(value, dict):
        return ",".join(f"{name}={number:g}" for name, number in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
