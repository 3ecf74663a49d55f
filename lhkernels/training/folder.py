"""The files of a training: metrics.jsonl, report.json, curves.png, a checkpoint for each run."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from lhkernels.training.config import RunKey, TrainConfig
from lhkernels.training.errors import TrainingError

RECORD = itemgetter(
    *RunKey._fields, "epoch", "train_loss", "test_loss", "test_error", "lr", "seconds"
)


class RunFolder:
    """Writes so that whatever stops the program, what is on disk is whole: by renaming."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.json"
        self.curves = self.path / "curves.png"
        self.checkpoints = self.path / "checkpoints"

    def holds_run(self) -> bool:
        # Path.exists raises for a name that is too long.
        return any(map(os.path.exists, (self.report, self.metrics, self.checkpoints)))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it; a crash lets go as well."""
        from filelock import FileLock, Timeout

        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock = FileLock(self.path / ".lock").acquire(timeout=0)
            except Timeout as error:
                raise TrainingError(
                    f"--out {self.path}: another process trains into it; wait for its end, or name "
                    "another folder"
                ) from error
        with lock:
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"--out {self.path}: can not be written ({error.strerror}); finished epochs are "
                "safe: put that right and go on by --resume, or name another folder"
            ) from error

    def clear(self) -> None:
        """Delete an earlier run's files, and nothing else that may lie there."""
        with self._writing():
            self.checkpoints.mkdir(exist_ok=True)
            checkpoints = self.checkpoints.glob("*-seed*.pt")
            for file in (self.metrics, self.report, self.curves, *checkpoints):
                file.unlink(missing_ok=True)

    def write_report(self, report: dict[str, Any]) -> None:
        self.write(self.report, strict_json(report, indent=2).encode() + b"\n")

    def stored_config(self) -> TrainConfig:
        """The options that the run was started with."""
        if not self.holds_run():
            raise TrainingError(
                f"--resume: there is no run in --out {self.path}; leave out --resume"
            )
        try:
            return TrainConfig(**json.loads(self.report.read_text())["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{self.report}: was changed, or written by another version ({error}); "
                "use --overwrite"
            ) from error

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        self.write(self.metrics, b"".join(strict_json(r).encode() + b"\n" for r in records))

    def append_metrics(self, record: dict[str, Any]) -> None:
        with self._writing(), self.metrics.open("a") as file:
            file.write(strict_json(record) + "\n")

    def checkpoint(self, key: RunKey) -> Path:
        scale = "" if key.init_scale == 1 else f"-scale{key.init_scale}"
        return self.checkpoints / f"{key.optimizer}-seed{key.seed}{scale}.pt"

    def save_checkpoint(self, key: RunKey, state: dict[str, Any]) -> None:
        content = io.BytesIO()  # torch.save to a full disk raises no OSError
        torch.save(state, content)
        self.write(self.checkpoint(key), content.getbuffer())

    def load_checkpoint(self, key: RunKey, device: torch.device) -> dict[str, Any] | None:
        """The saved state, or None where that run had not finished an epoch yet."""
        path = self.checkpoint(key)
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # what unpickling raises depends on the damage
            raise self.damaged_checkpoint(key, "can not be read") from error
        if not (isinstance(state, dict) and is_history(state.get("history"), key)):
            raise self.damaged_checkpoint(key, "does not hold this run's state")
        return state

    def damaged_checkpoint(self, key: RunKey, what: str) -> TrainingError:
        """The error for a checkpoint that is no use, with the ways out."""
        return TrainingError(
            f"{self.checkpoint(key)}: {what}; delete it to train this run again from "
            "its start, or use --overwrite to train all of them"
        )

    def write(self, path: Path, content: bytes | memoryview) -> None:
        """Put ``content`` in the place of the file, all of it or nothing."""
        temporary = path.with_name(f".{path.name}.tmp")
        with self._writing():
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def is_history(history: Any, key: RunKey) -> bool:
    """Whether these are the records of this very run."""
    try:
        epochs = [RECORD(record)[: len(key) + 1] for record in history]
    except (KeyError, TypeError):
        return False
    return epochs == [(*key, epoch) for epoch in range(1, len(epochs) + 1)]


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: a NaN is an error here, not a token in the file."""
    return json.dumps(value, indent=indent, allow_nan=False)
