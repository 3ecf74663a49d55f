"""Plots of the training study; told apart by markers, dashes and numbers, not by colour alone."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

from lhkernels.training.experiments import COMPARED, Cells
from lhkernels.training.plots import STYLES
from lhkernels.training.sweep import ResultFile
from lhkernels.training.sweep_summary import Row, axis_of, good_threshold, loss_of
from lhkernels.training.sweep_tables import NAMES

FONT: Any = {"font.size": 11, "hatch.linewidth": 0.6}
WORDS = {"init_scale": "initial scale", "width": "width x", "depth": "convolutions x"}
# One for each value of width or depth, from the smallest.
LINES = (
    ("o", "-", "#000000"), ("s", "--", "#c1440e"), ("^", "-.", "#1f6fb2"), ("D", ":", "#4d4d4d"),
    ("v", "-", "#8a8a8a"),
)  # fmt: skip


def draw(
    part: str, summary: dict[str, Any], file: ResultFile, cells: Cells, path: str | Path
) -> None:
    """Write the PNG of one part, whose every run is in ``file`` and description in ``summary``."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(FONT):
        if part == "figure1":
            figure = Figure(figsize=(7.5, 6.6), dpi=130, layout="constrained")
            _curves(figure, summary[part], file, cells)
        elif axis_of(part) == "init_scale":
            figure = Figure(figsize=(6.2, 7.6), dpi=130, layout="constrained")
            _heat_maps(figure, summary[part]["rows"], cells)
        else:
            figure = Figure(figsize=(6.2, 7.6), dpi=130, layout="constrained")
            _lines(figure, summary[part]["rows"], part)
        temporary = Path(path).with_name(f".{Path(path).name}")
        figure.savefig(temporary, format="png")
        temporary.replace(path)


def _curves(figure: Any, found: dict[str, Any], file: ResultFile, cells: Cells) -> None:
    """A row for each pair of learning rates: train loss, validation error."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots(2, 2, sharex=True, sharey="col")
    titles = {"paper": "the paper's learning rates", "tuned": "tuned learning rates"}
    for row, setting in enumerate(titles):
        for name in COMPARED:
            cell = cells[setting, name]
            for column, (field, factor) in enumerate(
                (("train_loss", 1), ("validation_error", 100))
            ):
                columns = [file[config]["history"][field] for config in cell]
                _band(
                    axes[row, column], columns, factor, name, f"{NAMES[name]}, {cell[0].lr[name]:g}"
                )
        seeds = max(len(cells[setting, name]) for name in COMPARED)
        axes[row, 0].set_ylabel("train loss")
        axes[row, 1].set_ylabel("validation error [%]")
        axes[row, 0].legend(title="learning rate", fontsize=10, title_fontsize=10)
        axes[row, 0].set_title(titles[setting], loc="left", fontsize=11)
        axes[row, 1].set_title(f"mean and range, n = {seeds}", loc="right", fontsize=10)
    for panel in axes.flat:
        panel.grid(alpha=0.3, which="both")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes[:, 0]:
        _log_scale(panel)
    for panel in axes[-1]:
        panel.set_xlabel("epoch")


def _band(
    panel: Any, histories: list[list[float | None]], factor: float, name: str, text: str
) -> None:
    """Mean and range over the seeds, in every epoch that some seed has finished."""
    epochs, values = [], []
    for epoch in range(max(map(len, histories))):
        column = [h[epoch] for h in histories if epoch < len(h)]
        finite = [factor * value for value in column if value is not None]
        if finite:
            epochs.append(epoch + 1)
            values.append(finite)
    ended = sum(None in history for history in histories)
    if ended:
        text += f" ({ended} of {len(histories)} diverged)"
    style = STYLES[name]
    panel.plot(epochs, [fmean(v) for v in values], label=text, markersize=4.5, **style)
    least, most = [min(v) for v in values], [max(v) for v in values]
    panel.fill_between(epochs, least, most, color=style["color"], alpha=0.2, linewidth=0)


def _heat_maps(figure: Any, rows: list[Row], cells: Cells) -> None:
    """Final train loss in every cell; framed where good, hatched where diverged."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    threshold = good_threshold(rows)
    losses = [loss_of(row) for row in rows if math.isfinite(loss_of(row))] or [1.0]
    norm = LogNorm(min(losses), max(min(max(losses), 3.0), 1.01 * min(losses)))
    scales = sorted({row["init_scale"] for row in rows})
    rates = sorted({row["lr"] for row in rows})
    seeds = rows[0]["seeds"]
    for panel, name in zip(figure.subplots(2, 1, sharex=True), COMPARED, strict=True):
        mine = [row for row in rows if row["optimizer"] == name]
        for row in mine:
            x, y, value = rates.index(row["lr"]), scales.index(row["init_scale"]), loss_of(row)
            sound, good = math.isfinite(value), value <= threshold
            shade = 1 - 0.62 * min(1.0, float(norm(value))) if sound else 1.0
            panel.add_patch(
                Rectangle(
                    (x - 0.5, y - 0.5), 1, 1, facecolor=str(shade), edgecolor="0.55",
                    hatch=None if sound else "xxx", linewidth=0.5,
                )
            )  # fmt: skip
            if good:
                frame = Rectangle((x - 0.45, y - 0.43), 0.9, 0.86, fill=False, linewidth=2.2)
                panel.add_patch(frame)
            panel.text(
                x, y, short(value) if sound else "div.", ha="center", va="center",
                weight="bold" if good else "normal", color="black",
                bbox=None if sound else {"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        count = sum(loss_of(row) <= threshold for row in mine)
        panel.set_title(f"{NAMES[name]}: {count} of {len(mine)} good", loc="left", fontsize=12)
        panel.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(scales) - 0.5))
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        panel.set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        panel.set_ylabel("initial scale of the weights")
    panel.set_xlabel("learning rate")
    figure.suptitle(f"final train loss, n = {seeds}; framed: at most {threshold:.2g}", fontsize=11)


def _lines(figure: Any, rows: list[Row], part: str) -> None:
    """Final train loss against the learning rate, a line for each width or depth."""
    axis = axis_of(part)
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for panel, name in zip(panels, COMPARED, strict=True):
        for i, value in enumerate(sorted({row[axis] for row in rows})):
            mine = [row for row in rows if (row["optimizer"], row[axis]) == (name, value)]
            mine = sorted((r for r in mine if not r["diverged"]), key=lambda r: r["lr"])
            marker, dashes, colour = LINES[i % len(LINES)]
            panel.plot(
                [r["lr"] for r in mine], [r["train_loss"] for r in mine], marker=marker,
                linestyle=dashes, color=colour, label=f"{WORDS[axis]} {value:g}",
            )  # fmt: skip
        panel.set_xscale("log")
        _log_scale(panel)
        panel.grid(alpha=0.3, which="both")
        panel.set_title(NAMES[name], loc="left", fontsize=12)
        panel.set_ylabel("final train loss")
        panel.xaxis.set_major_formatter("{x:g}")
    panels[0].legend(fontsize=10)
    panels[1].set_xlabel("learning rate (a point that is missing: diverged)")
    figure.suptitle(f"n = {rows[0]['seeds']} for each point", fontsize=11)


def _log_scale(panel: Any) -> None:
    """Logarithmic, with plain numbers, also where there is no power of ten in sight."""
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    low, high = panel.get_ylim()
    if high < 10 * low:
        panel.yaxis.set_minor_formatter("{x:g}")


def short(loss: float) -> str:
    """At most four characters or so, for a cell."""
    return f"{loss:.2f}" if loss < 100 else f"{loss:.0e}"
