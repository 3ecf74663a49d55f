"""curves.png: train loss and test error against the epoch, or against the initial scale."""

from __future__ import annotations

import io
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from lhkernels.training.config import OPTIMIZERS, TrainConfig
from lhkernels.training.loop import Record
from lhkernels.training.report import Histories

# Told apart by dashes and markers too, in print or by a colour-blind reader.
STYLES = {
    "sgd": {"color": "#4d4d4d", "linestyle": "--", "marker": "o"},
    "sa-sgd": {"color": "#c1440e", "linestyle": "-", "marker": "s"},
    "lars": {"color": "#1f6fb2", "linestyle": ":", "marker": "^"},
}
assert set(STYLES) == set(OPTIMIZERS)
MARKERS = 12  # on each line
FONT: Any = {"font.size": 11}

Band = tuple[list[float], list[float], list[float], list[float]]  # x, mean, least, largest


def draw_curves(config: TrainConfig, histories: Histories) -> bytes:
    """A PNG: a line per optimizer, the mean over the seeds, and their range as a band.

    Over the epochs; with several initial scales the final figures over the scale.
    """
    import matplotlib
    from matplotlib.figure import Figure

    several = len(config.init_scales) > 1
    along = "init_scale" if several else "epoch"
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
        loss_axes, error_axes = figure.subplots(1, 2)
        for optimizer in config.optimizers:
            mine = [history for key, history in histories.items() if key.optimizer == optimizer]
            records = [r for history in mine for r in (history[-1:] if several else history)]
            text = label(config, mine, optimizer)
            draw_band(loss_axes, spread(records, "train_loss", 1, along), optimizer, text)
            draw_band(error_axes, spread(records, "test_error", 100, along), optimizer, text)
        for axes, name in ((loss_axes, "train loss"), (error_axes, "test error [%]")):
            axes.set_title(name, loc="left", fontsize=11)
            axes.grid(alpha=0.3)
            set_places(axes, config.init_scales)
        set_logarithmic(loss_axes)
        error_axes.set_ylim(bottom=0)
        handles, texts = loss_axes.get_legend_handles_labels()
        columns = 1 if any("diverged" in text for text in texts) else len(texts)
        figure.legend(handles, texts, loc="outside lower center", ncols=columns)
        figure.suptitle(title(config), fontsize=11)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    return content.getvalue()


def set_places(axes, scales: tuple[float, ...]) -> None:
    """The horizontal axis: epochs, or several initial scales."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch" if len(scales) == 1 else "initial weights x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(scales) > 1:
        axes.set_xscale("log")
        axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axes.set_xticks([], minor=True)


def set_logarithmic(axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:g}")
    if high < 10 * low:  # within a decade there may be no major tick at all
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="minor")


def spread(records: Iterable[Record], field: str, factor: float = 1, along: str = "epoch") -> Band:
    """Mean, least and largest of a figure, for every epoch (or scale) that some record has."""
    values: dict[float, list[float]] = {}
    for record in records:
        if record[field] is not None:
            values.setdefault(record[along], []).append(factor * record[field])
    places = sorted(values)
    mean, least, largest = ([figure(values[p]) for p in places] for figure in (fmean, min, max))
    return places, mean, least, largest


def draw_band(axes, band: Band, optimizer: str, text: str) -> None:
    places, mean, least, largest = band
    style = STYLES[optimizer]
    every = max(1, len(places) // MARKERS)
    axes.plot(places, mean, label=text, markersize=4.5, markevery=every, **style)
    if least != largest:
        axes.fill_between(places, least, largest, color=style["color"], alpha=0.2, linewidth=0)


def label(config: TrainConfig, histories: list[list[Record]], optimizer: str) -> str:
    """The legend's entry, which says so when a line ends early."""
    text = f"{optimizer}, lr {config.lr[optimizer]:g}"
    last = [history[-1] for history in histories if history]
    diverged = [record["epoch"] for record in last if record["train_loss"] is None]
    if not diverged:
        return text
    runs = len(config.seeds) * len(config.init_scales)
    share = "" if runs == 1 else f" ({len(diverged)} of {runs} runs)"
    return f"{text}: diverged in epoch {min(diverged)}{share}"


def title(config: TrainConfig) -> str:
    parts = [config.data, config.model + (f" x {config.width:g}" if config.width != 1 else "")]
    if config.depth != 1:
        parts[-1] += f", depth x {config.depth}"
    if config.init_scales != (1,) and len(config.init_scales) == 1:
        parts.append(f"initial weights x {config.init_scale:g}")
    if len(config.seeds) > 1:
        parts.append(f"mean and range of {len(config.seeds)} seeds")
    return ", ".join(parts)
