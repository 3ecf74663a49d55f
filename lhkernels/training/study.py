"""Several optimizers side by side: same initialisation, same batches, an epoch of each in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lhkernels.training.config import RunKey, TrainConfig
from lhkernels.training.data import ImageData, load
from lhkernels.training.errors import ConfigError, TrainingError, is_out_of_memory
from lhkernels.training.folder import RunFolder
from lhkernels.training.loop import Record, Run, pick_device
from lhkernels.training.models import VGG
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
    folder = RunFolder(out)
    # Options first: what is wrong with them is not to be hidden by what is wrong with the folder.
    check_options(folder, config, resume, overwrite)
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
        if resume:
            self._load_histories()
        else:
            self.folder.clear()
        # Until it is finished the report says "interrupted", which is then true of a killed run.
        self._write_figures()
        self.observer.start(self.config, self.data, self.device)
        try:
            for scale in self.config.init_scales:
                for seed in self.config.seeds:
                    self._train_seed(scale, seed)
        finally:
            self.observer.finish(self._report())
            report = self._write_figures()
            self._draw()
        return report

    def _load_histories(self) -> None:
        """The checkpoints are the truth: metrics.jsonl and the report are made anew from them."""
        for key in self.config.run_keys():
            state = self.folder.load_checkpoint(key, self.device)
            if state is not None:
                self.histories[key] = state["history"]

    def _train_seed(self, scale: float, seed: int) -> None:
        keys = [RunKey(scale, seed, name) for name in self.config.optimizers]
        if all(map(self._complete, keys)):
            return
        runs = [self._make_run(key) for key in keys]
        self.observer.start_seed(runs)
        for epoch in range(1, self.config.epochs + 1):
            due = [run for run in runs if len(run.history) < epoch and not run.diverged]
            for run in due:
                record = run.run_epoch(partial(self.observer.batch, run))
                self.folder.save_checkpoint(run.key, run.state_dict())
                self.histories[run.key] = run.history
                self.folder.append_metrics(record)
                self.observer.epoch(run, record)
            if due:
                self.folder.write_report(self._report())
                self.observer.epoch_done(runs, epoch)

    def _make_run(self, key: RunKey) -> Run:
        run = Run(self.config, key, self.data, self.device)
        state = self.folder.load_checkpoint(key, self.device)
        if state is not None:
            try:
                run.load_state_dict(state)
            except Exception as error:  # torch's loaders raise many kinds for parts that do not fit
                what = "does not fit the run's network and optimizer"
                raise self.folder.damaged_checkpoint(key, what) from error
        return run

    def _complete(self, key: RunKey) -> bool:
        history = self.histories.get(key, [])
        diverged = bool(history) and history[-1]["train_loss"] is None
        return diverged or len(history) >= self.config.epochs

    def _report(self) -> dict[str, Any]:
        return make_report(self.config, self.histories, self.device)

    def _write_figures(self) -> dict[str, Any]:
        """metrics.jsonl in the order of an uninterrupted run, and the report."""
        records = [
            self.histories[key][epoch]
            for scale in self.config.init_scales
            for seed in self.config.seeds
            for epoch in range(self.config.epochs)
            for name in self.config.optimizers
            if epoch < len(self.histories.get(key := RunKey(scale, seed, name), []))
        ]
        self.folder.write_metrics(records)
        report = self._report()
        self.folder.write_report(report)
        return report

    def _draw(self) -> None:
        if any(self.histories.values()):
            from lhkernels.training.plots import draw_curves

            self.folder.write(self.folder.curves, draw_curves(self.config, self.histories))


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


def check_options(folder: RunFolder, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    """Refuse options that can not be followed together, here or in the run to resume."""
    if resume and overwrite:
        raise TrainingError("--resume and --overwrite exclude each other; give one of them")
    check_packages(config)
    if resume:
        resumed_config(folder, vars(config))


def check_memory(config: TrainConfig, data: ImageData, device: torch.device) -> None:
    """Ask for all weights, gradients and momenta in one piece, which the system refuses at once.

    In small pieces it grants more than it has, and ends the process when they are filled.
    """
    with torch.device("meta"):
        channels = data.train_images.shape[1]
        model = VGG(config.model, channels, data.classes, config.width, config.depth)
    numbers = 3 * len(config.optimizers) * sum(p.numel() for p in model.parameters())
    torch.empty(numbers, device=device)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Tell of an allocation that failed without a traceback."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "not enough memory; give a smaller --model, --width, --depth or --batch-size"
        ) from error


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
