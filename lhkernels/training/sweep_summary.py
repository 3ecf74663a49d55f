"""Numbers of the training study: chosen learning rates, tables, the width of the good region."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any

from lhkernels.training.config import TrainConfig
from lhkernels.training.experiments import COMPARED, Cells, Experiments
from lhkernels.training.sweep import ResultFile

# A cell is good if its final train loss is at most this many times the map's lowest, of either
# optimizer.
GOOD = 1.5
FIGURES = ("train_loss", "validation_error", "test_error")

Row = dict[str, Any]
Axis = {"heatmap": "init_scale", "heatmap-no-decay": "init_scale"}


def axis_of(part: str) -> str:
    """What a part varies beside the learning rate."""
    return Axis.get(part, part)


def missing_runs(cells: Cells, file: ResultFile) -> list[TrainConfig]:
    """The runs of ``cells`` that are not in the file, each once."""
    return file.missing(config for cell in cells.values() for config in cell)


def choose_lr(
    tuning: Mapping[tuple[Any, ...], list[TrainConfig]], file: ResultFile
) -> dict[str, float]:
    """Each optimizer's learning rate with the lowest mean validation error, then loss.

    ``tuning`` has the keys (optimizer, lr); a learning rate at which a seed diverged comes last. Of
    equals the first is chosen.
    """
    return {
        optimizer: min(
            (lr for name, lr in tuning if name == optimizer),
            key=lambda lr: tuple(
                final_mean(tuning[optimizer, lr], file, field)
                for field in ("validation_error", "validation_loss")
            ),
        )
        for optimizer in COMPARED
    }


def final_mean(cell: list[TrainConfig], file: ResultFile, field: str) -> float:
    """Mean over the seeds of a final figure; infinite if a seed has none."""
    values = [file[config]["final"][field] for config in cell]
    return math.inf if None in values else fmean(values)


def describe_cell(cell: list[TrainConfig], file: ResultFile) -> Row:
    """Learning rate, seeds, diverged runs; mean and sample std of the figures of the others."""
    results = [file[config] for config in cell]
    sound = [result["final"] for result in results if result["status"] == "ok"]
    ((optimizer, lr),) = cell[0].lr.items()
    row: Row = {"optimizer": optimizer, "lr": lr, "seeds": len(cell)}
    row["diverged"] = len(results) - len(sound)
    for field in FIGURES:
        values = [final[field] for final in sound]
        row[field] = fmean(values) if values else None
        row[f"{field}_std"] = stdev(values) if len(values) > 1 else None
    return row


def summarise(
    experiments: Experiments, complete: Mapping[str, Cells], file: ResultFile
) -> dict[str, Any]:
    """A description of each part of ``complete``: plain JSON values, None where there is none."""
    summary: dict[str, Any] = {}
    for part, cells in complete.items():
        if part == "figure1":
            tuning = experiments.tuning()
            summary[part] = {
                "tuned_lr": choose_lr(tuning, file),
                "tuning": [describe_cell(cell, file) for cell in tuning.values()],
                "rows": [
                    {"setting": label[0], **describe_cell(cell, file)}
                    for label, cell in cells.items()
                ],
                "paired": [paired(cells, setting, file) for setting in ("paper", "tuned")],
            }
            continue
        axis = axis_of(part)
        rows = [{axis: label[1], **describe_cell(cell, file)} for label, cell in cells.items()]
        summary[part] = {"rows": rows, "best": best_rows(rows, axis)}
        if axis == "init_scale":
            summary[part]["good_region"] = good_region(rows)
            summary[part]["carried"] = carried(rows)
    return summary


def paired(cells: Cells, setting: str, file: ResultFile) -> Row:
    """SA-SGD's figure minus SGD's, seed by seed: they had the same start and the same batches."""
    row: Row = {"setting": setting}
    for field in ("train_loss", "test_error"):
        differences = [
            b - a
            for first, second in zip(*(cells[setting, name] for name in COMPARED), strict=True)
            if (a := file[first]["final"][field]) is not None
            and (b := file[second]["final"][field]) is not None
        ]
        row[field] = fmean(differences) if differences else None
        row[f"{field}_std"] = stdev(differences) if len(differences) > 1 else None
        row[f"{field}_lower"] = sum(d < 0 for d in differences)
        row["seeds"] = len(differences)
    return row


def loss_of(row: Row) -> float:
    """The final train loss; infinite for a cell of which a seed diverged."""
    return math.inf if row["diverged"] else row["train_loss"]


def best_rows(rows: Iterable[Row], axis: str) -> list[Row]:
    """For each optimizer and value of ``axis`` the row with the lowest validation error."""
    best: dict[tuple[str, Any], Row] = {}
    for row in rows:
        if row["diverged"]:
            continue
        key = row["optimizer"], row[axis]
        if key not in best or row["validation_error"] < best[key]["validation_error"]:
            best[key] = row
    return sorted(best.values(), key=lambda row: (COMPARED.index(row["optimizer"]), row[axis]))


def good_threshold(rows: list[Row]) -> float:
    """Up to which final train loss a cell is good; infinite if every cell diverged."""
    return GOOD * min(map(loss_of, rows))


def is_good(row: Row, threshold: float) -> bool:
    """Whether a cell belongs to the good region; one of which a seed diverged never does."""
    return not row["diverged"] and row["train_loss"] <= threshold


def good_region(rows: list[Row]) -> list[Row]:
    """How wide it is: share of all cells, and how many scales the best single rate serves."""
    threshold, region = good_threshold(rows), []
    for optimizer in COMPARED:
        mine = [row for row in rows if row["optimizer"] == optimizer]
        good = [row for row in mine if is_good(row, threshold)]
        scales = {row["init_scale"] for row in mine}
        per_lr = {row["lr"]: 0 for row in mine}
        for row in good:
            per_lr[row["lr"]] += 1
        region.append(
            {
                "optimizer": optimizer,
                "threshold": threshold if math.isfinite(threshold) else None,
                "cells": len(mine),
                "good": len(good),
                "share": len(good) / len(mine),
                "diverged": sum(row["diverged"] > 0 for row in mine),
                "scales": len(scales),
                "scales_with_good_lr": len({row["init_scale"] for row in good}),
                "scales_good_at_one_lr": max(per_lr.values()),
            }
        )
    return region


def carried(rows: list[Row]) -> list[Row]:
    """The learning rate chosen at scale one, by validation error, taken to all other scales."""
    chosen = {
        row["optimizer"]: row["lr"]
        for row in best_rows(rows, "init_scale")
        if row["init_scale"] == 1
    }
    return [row for row in rows if row["lr"] == chosen.get(row["optimizer"])]
