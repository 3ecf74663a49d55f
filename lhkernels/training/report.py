"""Figures of a finished or interrupted study: per run, and per optimizer over the seeds."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from lhkernels.environment import describe
from lhkernels.training.config import RunKey, TrainConfig
from lhkernels.training.loop import Record

Histories = dict[RunKey, list[Record]]  # a record per epoch


def make_report(config: TrainConfig, histories: Histories, device: torch.device) -> dict[str, Any]:
    """What report.json holds: the options, the machine, a status and figures for every run."""
    runs = [describe_run(config, key, histories.get(key, [])) for key in config.run_keys()]
    return {
        "config": config.to_dict(),
        "environment": describe(device),
        "runs": runs,
        "summary": [
            summarise(scale, optimizer, runs)
            for scale in config.init_scales
            for optimizer in config.optimizers
        ],
    }


def describe_run(config: TrainConfig, key: RunKey, history: list[Record]) -> dict[str, Any]:
    """Status, final and best figures of one run; null where there are none."""
    finished = [record for record in history if record["train_loss"] is not None]
    diverged = len(finished) < len(history)
    best = min(finished, key=lambda record: record["test_error"], default=None)
    last = finished[-1] if finished and not diverged else None
    complete = len(history) >= config.epochs
    status = "diverged" if diverged else "ok" if complete else "interrupted"
    return {
        **key._asdict(),
        "status": status,
        "lr": config.lr[key.optimizer],
        "epochs": len(finished),
        "diverged_in_epoch": len(history) if diverged else None,
        "final_lr": last and last["lr"],
        "final_train_loss": last and last["train_loss"],
        "final_test_loss": last and last["test_loss"],
        "final_test_error": last and last["test_error"],
        "best_test_error": best and best["test_error"],
        "best_epoch": best and best["epoch"],
        "seconds_per_epoch": (
            statistics.fmean(record["seconds"] for record in finished) if finished else None
        ),
    }


SUMMARISED = ("final_train_loss", "final_test_error", "best_test_error", "seconds_per_epoch")


def summarise(init_scale: float, optimizer: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample std over the seeds that did not diverge (std: null for fewer than two)."""
    mine = [r for r in runs if (r["init_scale"], r["optimizer"]) == (init_scale, optimizer)]
    sound = [run for run in mine if run["status"] != "diverged"]
    summary: dict[str, Any] = {
        "init_scale": init_scale,
        "optimizer": optimizer,
        "lr": mine[0]["lr"],
        "seeds": len(mine),
        "diverged": len(mine) - len(sound),
    }
    for figure in SUMMARISED:
        values = [run[figure] for run in sound if run[figure] is not None]
        summary[figure] = {
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
    return summary
