"""curves.png: train loss and test error against the epoch."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

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

Band = tuple[list[int], list[float], list[float], list[float]]  # epochs, mean, least, largest


def draw_curves(config: TrainConfig, histories: Histories, path: Path) -> None:
    """One line per optimizer: the mean over the seeds, and the range between them as a band."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    for axes, field, factor in ((loss_axes, "train_loss", 1), (error_axes, "test_error", 100)):
        for optimizer in config.optimizers:
            band = spread(histories, optimizer, field, factor)
            draw_band(axes, band, optimizer, label(config, histories, optimizer))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    loss_axes.set_yscale("log")
    low, high = loss_axes.get_ylim()
    loss_axes.yaxis.set_major_formatter("{x:g}")
    if high < 10 * low:  # within a decade there may be no major tick at all
        loss_axes.yaxis.set_minor_formatter("{x:g}")
        loss_axes.grid(alpha=0.3, which="minor")
    loss_axes.set_ylabel("train loss")
    error_axes.set_ylabel("test error [%]")
    error_axes.legend()
    figure.suptitle(title(config))
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def spread(histories: Histories, optimizer: str, field: str, factor: float) -> Band:
    """Mean, least and largest value over the seeds in every epoch that some seed has reached."""
    values: dict[int, list[float]] = {}
    for (_, name), history in histories.items():
        for record in history:
            if name == optimizer and record[field] is not None:
                values.setdefault(record["epoch"], []).append(factor * record[field])
    epochs = sorted(values)
    return (
        epochs,
        [fmean(values[epoch]) for epoch in epochs],
        [min(values[epoch]) for epoch in epochs],
        [max(values[epoch]) for epoch in epochs],
    )


def draw_band(axes, band: Band, optimizer: str, text: str) -> None:
    epochs, mean, least, largest = band
    style = STYLES[optimizer]
    every = max(1, len(epochs) // MARKERS)
    axes.plot(epochs, mean, label=text, markersize=4.5, markevery=every, **style)
    if least != largest:
        axes.fill_between(epochs, least, largest, color=style["color"], alpha=0.2, linewidth=0)


def label(config: TrainConfig, histories: Histories, optimizer: str) -> str:
    """The legend's entry, which says so when a line ends early."""
    text = f"{optimizer}, lr {config.lr[optimizer]:g}"
    diverged = [
        history[-1] for key, history in histories.items() if _diverged(key, history, optimizer)
    ]
    if not diverged:
        return text
    first = min(record["epoch"] for record in diverged)
    share = "" if len(config.seeds) == 1 else f" ({len(diverged)} of {len(config.seeds)} seeds)"
    return f"{text}: diverged in epoch {first}{share}"


def _diverged(key: tuple[int, str], history: list[Record], optimizer: str) -> bool:
    return key[1] == optimizer and bool(history) and history[-1]["train_loss"] is None


def title(config: TrainConfig) -> str:
    parts = [config.data, config.model + (f" x {config.width:g}" if config.width != 1 else "")]
    if config.depth != 1:
        parts[-1] += f", depth x {config.depth}"
    if config.init_scale != 1:
        parts.append(f"initial weights x {config.init_scale:g}")
    if len(config.seeds) > 1:
        parts.append(f"mean and range of {len(config.seeds)} seeds")
    return ", ".join(parts)
