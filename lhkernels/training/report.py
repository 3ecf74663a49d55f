"""Figures of a finished or interrupted training: per run, and per optimizer over the seeds."""

from __future__ import annotations

import statistics
from itertools import product
from typing import Any

import torch

from lhkernels.environment import describe
from lhkernels.training.config import RunKey, TrainConfig
from lhkernels.training.loop import Record, has_diverged

Histories = dict[RunKey, list[Record]]  # a record per epoch
SUMMARISED = ("final_train_loss", "final_test_error", "best_test_error", "seconds_per_epoch")


def make_report(config: TrainConfig, histories: Histories, device: torch.device) -> dict[str, Any]:
    """What report.json holds: the options, the machine, a status and figures for every run."""
    runs = [describe_run(config, key, histories.get(key, [])) for key in config.run_keys()]
    groups = product(config.init_scales, config.optimizers)
    return {
        "config": config.to_dict(),
        "environment": describe(device),
        "runs": runs,
        "summary": [summarise(scale, optimizer, runs) for scale, optimizer in groups],
    }


def describe_run(config: TrainConfig, key: RunKey, history: list[Record]) -> dict[str, Any]:
    """Status, final and best figures of one run; null where there are none."""
    diverged = has_diverged(history)
    finished = history[:-1] if diverged else history
    best = min(finished, key=lambda record: record["test_error"], default=None)
    last = finished[-1] if finished and not diverged else None
    status = "ok" if len(history) >= config.epochs else "interrupted"
    figures = ("lr", "train_loss", "test_loss", "test_error")
    seconds = [record["seconds"] for record in finished]
    return {
        **key._asdict(),
        "status": "diverged" if diverged else status,
        "lr": config.lr[key.optimizer],
        "epochs": len(finished),
        "diverged_in_epoch": len(history) if diverged else None,
        **{f"final_{figure}": last and last[figure] for figure in figures},
        "best_test_error": best and best["test_error"],
        "best_epoch": best and best["epoch"],
        "seconds_per_epoch": statistics.fmean(seconds) if seconds else None,
    }


def summarise(init_scale: float, optimizer: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample std over the seeds that did not diverge (std: null for fewer than two)."""
    mine = [r for r in runs if (r["init_scale"], r["optimizer"]) == (init_scale, optimizer)]
    sound = [run for run in mine if run["status"] != "diverged"]
    summary = {
        "init_scale": init_scale,
        "optimizer": optimizer,
        "lr": mine[0]["lr"],
        "seeds": len(mine),
        "diverged": len(mine) - len(sound),
    }
    for figure in SUMMARISED:
        values = [run[figure] for run in sound if run[figure] is not None]
        mean = statistics.fmean(values) if values else None
        summary[figure] = {"mean": mean, "std": statistics.stdev(values) if values[1:] else None}
    return summary
