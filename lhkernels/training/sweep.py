"""Many runs, each with one optimizer and one seed; every finished one is a line of a file.

A run follows from its configuration alone: initial weights and batches are drawn from the seed,
whatever the optimizer. So a line is found by its configuration, and a sweep that was stopped, or a
second sweep that shares runs with it, trains only what the file lacks.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from lhkernels.training.config import TrainConfig
from lhkernels.training.data import ImageData, load
from lhkernels.training.errors import TrainingError
from lhkernels.training.folder import strict_json
from lhkernels.training.loop import Run
from lhkernels.training.models import LAYOUTS

Result = dict[str, Any]
HISTORY = ("train_loss", "validation_loss", "validation_error", "lr")
FINAL = ("train_loss", "validation_loss", "validation_error", "test_loss", "test_error")
DIGITS = 6  # kept of a figure
ELSEWHERE = {"data_dir", "device"}  # where a run takes place, which decides nothing about it

_loaded: dict[tuple[Any, ...], ImageData] = {}  # of this process


def run_key(config: TrainConfig) -> str:
    """16 hexadecimal digits that stand for all of ``config`` but where it runs."""
    return _key(config.to_dict())


def _key(options: dict[str, Any]) -> str:
    decisive = {name: value for name, value in options.items() if name not in ELSEWHERE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


class ResultFile:
    """Finished runs, a JSON line each: key, config, status, epochs, history, final, seconds.

    ``history`` has a column an epoch of each of ``HISTORY``, ``final`` the last epoch's ``FINAL``;
    None in place of figures that a diverged run has not. A line that a kill cut short is dropped.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.results: dict[str, Result] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            lines = self.path.read_text().split("\n")[:-1]  # what follows the last \n is incomplete
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"{self.path}: can not be read ({error})") from error
        for number, line in enumerate(lines, start=1):
            try:
                result = json.loads(line)
                if not result["final"].keys() >= set(FINAL):
                    raise KeyError("final")
                key = _key(result["config"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise TrainingError(
                    f"{self.path}, line {number}: holds no finished run ({error!r}); delete the "
                    "line to train that run again"
                ) from error
            self.results[key] = result

    def __contains__(self, config: TrainConfig) -> bool:
        return run_key(config) in self.results

    def __getitem__(self, config: TrainConfig) -> Result:
        return self.results[run_key(config)]

    def missing(self, configs: Iterable[TrainConfig]) -> list[TrainConfig]:
        """Those of ``configs`` that the file lacks, each once."""
        keyed = {run_key(config): config for config in configs}
        return [config for key, config in keyed.items() if key not in self.results]

    def add(self, result: Result) -> None:
        """Append a line, which is on the disk when this returns.

        Raises:
            TrainingError: the file can not be written.
        """
        try:
            with self.path.open("a+b") as file:
                file.seek(0)
                complete = file.read().rfind(b"\n") + 1
                file.truncate(complete)
                file.write(strict_json(result).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrainingError(
                f"{self.path}: can not be written ({error.strerror}); the runs it has are whole: "
                "make room or take another folder, and give the same command"
            ) from error
        self.results[result["key"]] = result


def train_one(config: TrainConfig, device: torch.device) -> Result:
    """The one run of ``config`` from start to end; the test images are looked at only at its end.

    Raises:
        TrainingError: the data can not be loaded or the optimizer can not start.
    """
    (key,) = config.run_keys()
    run = Run(config, key, load_once(config, device), device)
    for epoch in range(1, config.epochs + 1):
        run.run_epoch(test=epoch == config.epochs)
        if run.diverged:
            break
    columns = {name: [rounded(record.get(name)) for record in run.history] for name in HISTORY}
    last = {} if run.diverged else run.history[-1]
    return {
        "key": run_key(config),
        "config": {k: v for k, v in config.to_dict().items() if k not in ELSEWHERE},
        "status": "diverged" if run.diverged else "ok",
        "epochs": len(run.history),
        "history": columns,
        "final": {name: rounded(last.get(name)) for name in FINAL},
        "seconds": round(sum(record["seconds"] for record in run.history), 2),
    }


def load_once(config: TrainConfig, device: torch.device) -> ImageData:
    """The data of ``config`` on the device, kept for the next run of this process."""
    what = (
        config.data, config.data_dir, config.limit, config.validation, config.shrink,
        LAYOUTS[config.model].count("M"), str(device),
    )  # fmt: skip
    if what not in _loaded:
        _loaded.clear()  # one data set at a time in memory
        _loaded[what] = load(config).to(device)
    return _loaded[what]


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def run_all(
    configs: Iterable[TrainConfig],
    file: ResultFile,
    device: torch.device,
    *,
    jobs: int = 1,
    threads: int = 1,
    until: float | None = None,
    report: Callable[[TrainConfig, Result], None] = lambda config, result: None,
) -> int:
    """Train every run that ``file`` lacks, ``jobs`` at a time; how many are still lacking.

    Args:
        threads: torch's threads in each job.
        until: no run starts after this reading of ``time.monotonic()``.
        report: is told of each run once its line is written.

    Raises:
        TrainingError: the data can not be loaded, a file not written, a job was killed. Whatever
            is raised, the runs finished before are in ``file``.
    """
    due = file.missing(configs)
    trained = _serially if jobs == 1 else _in_processes
    with closing(trained(due, device, jobs, threads, until)) as results:
        for config, result in results:
            file.add(result)
            report(config, result)
    return len(file.missing(due))


Results = Generator[tuple[TrainConfig, Result], None, None]


def _late(until: float | None) -> bool:
    return until is not None and time.monotonic() > until


def _serially(
    due: list[TrainConfig], device: torch.device, jobs: int, threads: int, until: float | None
) -> Results:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for config in due:
            if _late(until):
                return
            yield config, train_one(config, device)
    finally:
        torch.set_num_threads(before)


def _in_processes(
    due: list[TrainConfig], device: torch.device, jobs: int, threads: int, until: float | None
) -> Results:
    # A forked process can not use CUDA.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        jobs, mp_context=spawn, initializer=_start_worker, initargs=(threads,)
    )
    running: dict[Future[Result], TrainConfig] = {}
    waiting = iter(due)
    failure: BaseException | None = None
    try:
        while True:
            while len(running) < jobs and failure is None and not _late(until):
                config = next(waiting, None)
                if config is None:
                    break
                running[pool.submit(train_one, config, device)] = config
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                config = running.pop(future)
                if future.exception() is None:
                    yield config, future.result()
                else:  # what runs beside it is waited for and kept
                    failure = failure or future.exception()
    except BrokenProcessPool as error:  # of submit
        failure = failure or error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if isinstance(failure, BrokenProcessPool):
        raise TrainingError(
            "a job was killed, perhaps for want of memory; finished runs are saved: give the same "
            "command with fewer --jobs"
        ) from failure
    if failure is not None:
        raise failure


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and hold its memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def relative_cost(config: TrainConfig) -> float:
    """Multiply-adds of a training run for images of one pixel: good for comparing two runs."""
    area, n_in, per_image = 1.0, 1, 0.0
    for entry in LAYOUTS[config.model]:
        if isinstance(entry, str):
            area /= 4
            continue
        n_out = max(1, round(entry * config.width))
        for _ in range(config.depth):
            per_image += 9 * n_in * n_out * area
            n_in = n_out
    return per_image * (config.limit or 50_000) * config.epochs
