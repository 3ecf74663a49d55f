"""The files of a run: metrics.jsonl, report.json, curves.png, checkpoints/OPTIMIZER-seedN.pt."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lhkernels.training.errors import TrainingError

STATE_PARTS = {"model", "optimizer", "scheduler", "scaler", "history", "diverged"}
RECORD_FIELDS = {
    "seed", "epoch", "optimizer", "train_loss", "test_loss", "test_error", "lr", "seconds",
}  # fmt: skip


class RunFolder:
    """Writes so that whatever stops the program, what is on disk is whole: by renaming."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.json"
        self.curves = self.path / "curves.png"
        self.checkpoints = self.path / "checkpoints"

    def holds_run(self) -> bool:
        return self.report.exists() or self.metrics.exists() or self.checkpoints.exists()

    def create(self) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"--out {self.path}: the folder can not be made ({error.strerror})"
            ) from error

    def clear(self) -> None:
        """Delete an earlier run's files, and nothing else that may lie there."""
        for file in (self.metrics, self.report, self.curves, *self.checkpoints.glob("*-seed*.pt")):
            file.unlink(missing_ok=True)

    def write_report(self, report: dict[str, Any]) -> None:
        self._write(self.report, strict_json(report, indent=2) + "\n")

    def read_report(self) -> dict[str, Any]:
        try:
            return json.loads(self.report.read_text())
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{self.report}: holds no report to resume from ({error}); use --overwrite"
            ) from error

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        self._write(self.metrics, "".join(strict_json(record) + "\n" for record in records))

    def append_metrics(self, record: dict[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(strict_json(record) + "\n")

    def checkpoint(self, optimizer: str, seed: int) -> Path:
        return self.checkpoints / f"{optimizer}-seed{seed}.pt"

    def save_checkpoint(self, optimizer: str, seed: int, state: dict[str, Any]) -> None:
        path = self.checkpoint(optimizer, seed)
        temporary = path.with_suffix(".tmp")
        try:
            torch.save(state, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self, optimizer: str, seed: int, device: torch.device
    ) -> dict[str, Any] | None:
        """The saved state, or None where that run had not finished an epoch yet."""
        path = self.checkpoint(optimizer, seed)
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # what unpickling raises depends on the damage
            raise self.damaged_checkpoint(optimizer, seed, "can not be read") from error
        if not is_state(state, optimizer, seed):
            raise self.damaged_checkpoint(optimizer, seed, "does not hold this run's state")
        return state

    def damaged_checkpoint(self, optimizer: str, seed: int, what: str) -> TrainingError:
        """The error for a checkpoint that is no use, with the ways out."""
        return TrainingError(
            f"{self.checkpoint(optimizer, seed)}: {what}; delete it to train this run again from "
            "its start, or use --overwrite to train all of them"
        )

    @staticmethod
    def _write(path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text)
        os.replace(temporary, path)


def is_state(state: Any, optimizer: str, seed: int) -> bool:
    """Whether ``state`` has all parts of a run's state, and the history of this very run."""
    if not (isinstance(state, dict) and state.keys() >= STATE_PARTS):
        return False
    history = state["history"]
    return isinstance(history, list) and all(
        isinstance(record, dict)
        and record.keys() >= RECORD_FIELDS
        and (record["optimizer"], record["seed"], record["epoch"]) == (optimizer, seed, epoch)
        for epoch, record in enumerate(history, start=1)
    )


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: a NaN is an error here, not a token in the file."""
    return json.dumps(value, indent=indent, allow_nan=False)
