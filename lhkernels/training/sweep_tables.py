"""The summary of a training study as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lhkernels.training.experiments import COMPARED
from lhkernels.training.sweep_summary import GOOD, Row, axis_of

NAMES = {"sgd": "SGD", "sa-sgd": "SA-SGD"}
TITLES = {
    "figure1": "Figure 1: learning curves",
    "heatmap": "Initial scale x learning rate, with weight decay",
    "heatmap-no-decay": "Initial scale x learning rate, no weight decay",
    "width": "Width",
    "depth": "Depth",
}


def to_markdown(summary: dict[str, Any]) -> str:
    """A section for each part, after a line that names the machine."""
    lines = ["# Training study", ""]
    if summary.get("environment"):
        shown = ("device", "gpu", "cpu", "threads", "jobs", "torch", "python")
        have = summary["environment"]
        lines += [", ".join(f"{k}: {have[k]}" for k in shown if have.get(k) is not None), ""]
    for part, title in TITLES.items():
        if part in summary:
            lines += [f"## {title}", "", *section(part, summary[part]), ""]
    return "\n".join(lines).rstrip() + "\n"


def section(part: str, found: dict[str, Any]) -> list[str]:
    """The tables of one part."""
    if part == "figure1":
        return figure1_tables(found)
    axis = axis_of(part)
    best = table(
        ("optimizer", axis, "chosen lr", "train loss", "test error"),
        [
            (NAMES[r["optimizer"]], f"{r[axis]:g}", f"{r['lr']:g}", loss(r),
             percent(r, "test_error"))
            for r in found["best"]
        ],
    )  # fmt: skip
    lines = ["Learning rate chosen for each by the lowest validation error:", "", *best]
    if axis != "init_scale":
        return lines
    region = table(
        ("optimizer", "good cells", "share", "scales with a good lr", "scales good at one lr",
         "diverged"),
        [
            (NAMES[r["optimizer"]], f"{r['good']} of {r['cells']}", f"{100 * r['share']:.0f} %",
             f"{r['scales_with_good_lr']} of {r['scales']}",
             f"{r['scales_good_at_one_lr']} of {r['scales']}", str(r["diverged"]))
            for r in found["good_region"]
        ],
    )  # fmt: skip
    threshold = found["good_region"][0]["threshold"]
    limit = "" if threshold is None else f", here {threshold:.3g}"
    lines += ["", f"Good: final train loss at most {GOOD:g} x the lowest of both{limit}:", ""]
    lines += [*region, "", "Final train loss at the learning rate chosen at scale 1:", ""]
    return lines + carried_table(found["carried"])


def figure1_tables(found: dict[str, Any]) -> list[str]:
    rows = [
        (r["setting"], NAMES[r["optimizer"]], f"{r['lr']:g}", str(r["seeds"]), str(r["diverged"]),
         loss(r), percent(r, "test_error"))
        for r in found["rows"]
    ]  # fmt: skip
    lines = table(
        ("learning rates", "optimizer", "lr", "seeds", "diverged", "train loss", "test error"), rows
    )
    lines += ["", "SA-SGD minus SGD, seed by seed:", ""]
    lines += table(
        ("learning rates", "train loss", "lower in", "test error, points", "lower in"),
        [
            (p["setting"], loss(p), f"{p['train_loss_lower']} of {p['seeds']}",
             percent(p, "test_error", ""), f"{p['test_error_lower']} of {p['seeds']}")
            for p in found["paired"]
        ],
    )  # fmt: skip
    lines += ["", "Tuning: mean validation error (train loss), other seeds:", ""]
    rates = list(dict.fromkeys(r["lr"] for r in found["tuning"]))
    by_cell = {(r["optimizer"], r["lr"]): r for r in found["tuning"]}
    return lines + table(
        ("lr", *(f"{rate:g}" for rate in rates)),
        [
            (NAMES[name], *(tuning_cell(by_cell[name, rate], found["tuned_lr"]) for rate in rates))
            for name in COMPARED
        ],
    )


def tuning_cell(row: Row, tuned: dict[str, float]) -> str:
    if row["diverged"]:
        return "diverged"
    text = f"{100 * row['validation_error']:.1f} % ({row['train_loss']:.3f})"
    return f"**{text}**" if tuned[row["optimizer"]] == row["lr"] else text


def carried_table(rows: list[Row]) -> list[str]:
    scales = list(dict.fromkeys(row["init_scale"] for row in rows))
    return table(
        ("optimizer", "lr", *(f"x {scale:g}" for scale in scales)),
        [
            (NAMES[name], f"{mine[0]['lr']:g}", *(settled_loss(row) for row in mine))
            for name in COMPARED
            if (mine := [row for row in rows if row["optimizer"] == name])
        ],
    )


def settled_loss(row: Row) -> str:
    """The train loss of a cell none of whose seeds diverged."""
    return "diverged" if row["diverged"] else loss(row)


def loss(row: Row) -> str:
    """Mean ± std of the train loss, over the seeds that did not diverge."""
    if row["train_loss"] is None:
        return "diverged"
    spread = row["train_loss_std"]
    return f"{row['train_loss']:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def percent(row: Row, field: str, unit: str = " %") -> str:
    """Mean ± std of a share, in percent."""
    if row[field] is None:
        return "diverged"
    spread = row[f"{field}_std"]
    return f"{100 * row[field]:.2f}{unit}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown lines."""
    return [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]
