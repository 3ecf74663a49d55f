"""Plots of the training study; told apart by markers, dashes and numbers, not by colour alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lhkernels.training.config import TrainConfig
from lhkernels.training.experiments import COMPARED, Cells
from lhkernels.training.plots import STYLES, spread
from lhkernels.training.sweep import ResultFile
from lhkernels.training.sweep_summary import Row, axis_of, good_threshold, is_good, loss_of
from lhkernels.training.sweep_tables import NAMES

FONT: Any = {"font.size": 11, "hatch.linewidth": 0.6}
DPI = 180
WIDTH = 5  # inches: on a phone, 360 pixels wide, 10 points are 10 pixels
WORDS = {"init_scale": "initial scale", "width": "width x", "depth": "convolutions x"}
# Marker, its filling, dashes, colour: one for each value of width or depth, from the smallest.
LINES = (
    ("o", "full", "-", "#000000"), ("s", "none", "--", "#c1440e"), ("^", "full", "-.", "#1f6fb2"),
    ("D", "none", ":", "#4d4d4d"), ("v", "full", "-", "#8a8a8a"),
)  # fmt: skip
# Where two bands overlap in print, one is hatched.
BANDS: dict[str, dict[str, Any]] = {
    "sgd": {"facecolor": "none", "edgecolor": "#8a8a8a", "hatch": "////", "linewidth": 0.7},
    "sa-sgd": {"facecolor": STYLES["sa-sgd"]["color"], "alpha": 0.3, "linewidth": 0.0},
}


def draw(
    part: str, summary: dict[str, Any], file: ResultFile, cells: Cells, path: str | Path
) -> None:
    """Write the PNG of one part, whose every run is in ``file`` and description in ``summary``."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(WIDTH, 6.4), dpi=DPI, layout="constrained")
        if part == "figure1":
            _curves(figure, file, cells)
        elif axis_of(part) == "init_scale":
            _heat_maps(figure, summary[part]["rows"])
        else:
            _lines(figure, summary[part]["rows"], part)
        temporary = Path(path).with_name(f".{Path(path).name}")
        figure.savefig(temporary, format="png")
        temporary.replace(path)


def _curves(figure: Any, file: ResultFile, cells: Cells) -> None:
    """A row for each pair of learning rates: train loss, validation error."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots(2, 2, sharex=True, sharey="col")
    titles = {"paper": "the paper's rates", "tuned": "tuned rates"}
    fields = (("train_loss", 1), ("validation_error", 100))
    for row, (setting, title) in enumerate(titles.items()):
        for column, (field, factor) in enumerate(fields):
            handles = [  # the same in both panels
                _band(axes[row, column], cells[setting, name], file, field, factor)
                for name in COMPARED
            ]
        texts = [_label(cells[setting, name], file) for name in COMPARED]
        axes[row, 0].legend(handles, texts, fontsize=9, loc="upper right", borderaxespad=0.2)
        axes[row, 0].set_title(f"train loss,\n{title}", loc="left", fontsize=11)
        axes[row, 1].set_title(f"validation error [%],\n{title}", loc="left", fontsize=11)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for panel in axes[:, 0]:
        _log_scale(panel)
    for panel in axes[-1]:
        panel.set_xlabel("epoch")
    counts = {len(cell) for cell in cells.values()}
    figure.suptitle(f"mean and range over the seeds, n = {max(counts)}", fontsize=11)


def _label(cell: list[TrainConfig], file: ResultFile) -> str:
    ((name, lr),) = cell[0].lr.items()
    ended = sum(file[config]["status"] == "diverged" for config in cell)
    return f"{NAMES[name]}, {lr:g}" + (f"\n({ended} of {len(cell)} diverged)" if ended else "")


def _band(
    panel: Any, cell: list[TrainConfig], file: ResultFile, field: str, factor: float
) -> tuple[Any, Any]:
    """Mean and range over the seeds; the two as the legend's sample."""
    ((name, _),) = cell[0].lr.items()
    records = [
        {"epoch": epoch, field: value}
        for config in cell
        for epoch, value in enumerate(file[config]["history"][field], start=1)
    ]
    epochs, mean, least, most = spread(records, field, factor)
    (line,) = panel.plot(epochs, mean, markersize=4, markevery=2, **STYLES[name])
    return panel.fill_between(epochs, least, most, **BANDS[name]), line


def _heat_maps(figure: Any, rows: list[Row]) -> None:
    """Final train loss in every cell; framed where good, hatched where diverged."""
    from matplotlib.colors import LogNorm

    threshold = good_threshold(rows)
    losses = [loss_of(row) for row in rows if not row["diverged"]] or [1.0]
    norm = LogNorm(min(losses), max(min(max(losses), 3.0), 1.01 * min(losses)))
    scales = sorted({row["init_scale"] for row in rows})
    rates = sorted({row["lr"] for row in rows})
    for panel, name in zip(figure.subplots(2, 1, sharex=True), COMPARED, strict=True):
        mine = [row for row in rows if row["optimizer"] == name]
        for row in mine:
            place = rates.index(row["lr"]), scales.index(row["init_scale"])
            shade = 1 - 0.5 * min(1.0, float(norm(row["train_loss"] or 1.0)))
            _heat_cell(panel, place, row, shade, is_good(row, threshold))
        count = sum(is_good(row, threshold) for row in mine)
        panel.set_title(f"{NAMES[name]}: {count} of {len(mine)} good", loc="left", fontsize=12)
        panel.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(scales) - 0.5))
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        panel.set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        panel.set_ylabel("initial scale of the weights")
    panel.set_xlabel("learning rate")
    framed = f"framed: good, at most {threshold:.2g}" if math.isfinite(threshold) else "none good"
    figure.suptitle(f"final train loss, {_sample(rows, 'mean')};\n{framed}", fontsize=11)


def _heat_cell(panel: Any, place: tuple[int, int], row: Row, shade: float, good: bool) -> None:
    from matplotlib.patches import Rectangle

    x, y = place
    look: Any = {"edgecolor": "0.55", "linewidth": 0.5, "facecolor": str(shade)}
    if row["diverged"]:
        look |= {"hatch": "xxx", "facecolor": "white"}
    panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
    if good:
        panel.add_patch(Rectangle((x - 0.45, y - 0.43), 0.9, 0.86, fill=False, linewidth=2.2))
    panel.text(
        x, y, "div." if row["diverged"] else short(row["train_loss"]), ha="center", va="center",
        weight="bold" if good else "normal", color="black",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5} if row["diverged"] else None,
    )  # fmt: skip


def _lines(figure: Any, rows: list[Row], part: str) -> None:
    """Final train loss against the learning rate, a line for each width or depth."""
    axis = axis_of(part)
    rates = sorted({row["lr"] for row in rows})
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for panel, name in zip(panels, COMPARED, strict=True):
        for i, value in enumerate(sorted({row[axis] for row in rows})):
            mine = [row for row in rows if (row["optimizer"], row[axis]) == (name, value)]
            mine = sorted((r for r in mine if not r["diverged"]), key=lambda r: r["lr"])
            marker, filling, dashes, colour = LINES[i % len(LINES)]
            panel.errorbar(
                [r["lr"] for r in mine], [r["train_loss"] for r in mine],
                [r["train_loss_std"] or 0.0 for r in mine] if rows[0]["seeds"] > 1 else None,
                marker=marker, fillstyle=filling, linestyle=dashes, color=colour, capsize=3,
                label=f"{WORDS[axis]} {value:g}",
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
        panel.set_xticks([], minor=True)
        _log_scale(panel)
        panel.grid(alpha=0.3)
        panel.set_title(NAMES[name], loc="left", fontsize=12)
        panel.set_ylabel("final train loss")
    panels[0].legend(fontsize=10)
    missing = " (no point: diverged)" if any(row["diverged"] for row in rows) else ""
    panels[1].set_xlabel(f"learning rate{missing}")
    figure.suptitle(f"{part}: {_sample(rows, 'mean ± std')}", fontsize=11)


def _sample(rows: list[Row], several: str) -> str:
    """What a figure stands for; a single run has no spread to show."""
    seeds = rows[0]["seeds"]
    return "one run each (n = 1)" if seeds == 1 else f"{several}, n = {seeds}"


def _log_scale(panel: Any) -> None:
    """Logarithmic, with plain numbers, also where there is no power of ten in sight."""
    from matplotlib.ticker import LogLocator, NullLocator

    siblings = panel.get_shared_y_axes().get_siblings(panel)
    if not any(len(line.get_ydata()) for sibling in siblings for line in sibling.lines):
        return  # every run diverged
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 6, 8), numticks=99))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter("{x:g}")


def short(loss: float) -> str:
    """At most four characters or so, for a cell."""
    return f"{loss:.2f}" if loss < 100 else f"{loss:.0e}"
