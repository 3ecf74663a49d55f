"""Tables and pictures of the training study, from a DataFrame with a row a run."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from lhkernels.tables import to_markdown

Runs = pd.DataFrame
Section = tuple[str, Figure | None]  # in Markdown, with a picture
NAMES = {"sgd": "SGD", "sa-sgd": "SA-SGD"}
BY_ERROR, BY_LOSS = ["validation_error", "validation_loss"], ["validation_loss"]
GOOD = 1.5  # a run is good up to this many times the lowest final train loss, of either optimizer
STYLE = rc_context({  # 5 inches: on a phone, 360 pixels wide, 10 points are 10 pixels
    "figure.figsize": (5, 6.4), "figure.dpi": 180, "figure.constrained_layout.use": True,
    "font.size": 11, "figure.titlesize": 11, "axes.titlesize": 11, "axes.titlelocation": "left",
    "legend.fontsize": 9, "lines.markersize": 5, "hatch.linewidth": 0.6, "grid.alpha": 0.3,
})  # fmt: skip
# Told apart by markers and dashes, not by colour alone; of two overlapping bands one is hatched.
LINES: Mapping[str, Any] = {  # format, colour, band
    "sgd": ("o--", "#4d4d4d", {"facecolor": "none", "edgecolor": "#8a8a8a", "hatch": "////"}),
    "sa-sgd": ("s-", "#c1440e", {"facecolor": "#c1440e", "alpha": 0.3, "linewidth": 0}),
}
SIZES = {"style": ["o-", "s--", "^-.", "D:"], "color": ["#000000", "#c1440e", "#1f6fb2", "#4d4d4d"]}


def frame(lines: Iterable[Mapping[str, Any]]) -> Runs:
    """A row a run: its options, its final figures (NaN if it diverged), and its history."""
    runs = pd.DataFrame(
        {
            **line["config"], **line["final"], "history": line["history"],
            "optimizer": line["config"]["optimizers"][0], "seed": line["config"]["seeds"][0],
            "lr": sum(line["config"]["lr"].values()), "diverged": line["status"] == "diverged",
        }
        for line in lines
    )  # fmt: skip
    figures = runs.filter(regex="_(loss|error)$").astype(float)
    return runs.assign(optimizer=pd.Categorical(runs.optimizer, [*NAMES]), **figures)


def cells(runs: Runs, *heads: str) -> Any:
    """The runs of each cell, in the order of what ``heads`` name."""
    return runs.groupby([*heads], observed=True)


def choose(runs: Runs, by: list[str], *heads: str) -> pd.DataFrame:
    """``lr`` for each of ``heads``: with the lowest mean of ``by[0]``, among equals of ``by[1]``.

    A learning rate at which a seed diverged comes last.
    """
    means = cells(runs.fillna(dict.fromkeys(by, math.inf)), *heads, "lr")[by].mean()
    return means.sort_values(by).reset_index().drop_duplicates([*heads])[[*heads, "lr"]]


def best(runs: Runs, by: list[str]) -> dict[str, list[float]]:
    return {name: [lr] for name, lr in choose(runs, by, "optimizer").itertuples(index=False)}


def shown(values: pd.Series, digits: int = 4, unit: str = "") -> str:
    """Mean ± sample standard deviation over the seeds that did not diverge, and how many did."""
    if values.isna().all():
        return "diverged"
    spread = f" ± {values.std():.{digits}f}" if values.count() > 1 else ""
    ended = f" ({of(values.isna())} diverged)" if values.isna().any() else ""
    return f"{values.mean():.{digits}f}{unit}{spread}{ended}"


def percent(values: pd.Series, digits: int = 2) -> str:
    return shown(100 * values, digits, " %")


def of(flags: pd.Series) -> str:
    return f"{flags.sum()} of {flags.count()}"


FIGURES = {"train loss": ("train_loss", shown), "test error": ("test_error", percent)}
CLASSES = {"sgd": "`torch.optim.SGD`", "sa-sgd": "`ScaleAmendedSGD`"}


def markdown(table: pd.DataFrame) -> str:
    """The index is columns like any other."""

    def text(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(NAMES.get(value, value))

    table = table.reset_index()
    rows = [map(text, row) for row in table.itertuples(index=False)]
    return to_markdown([text(name).replace("_", " ") for name in table], rows).strip()


def rate_table(tuning: Runs, by: list[str], text: Callable[[Any], str], *heads: str) -> str:
    """A column a learning rate, the chosen one bold."""
    table = cells(tuning, *heads, "lr")[["train_loss", *BY_ERROR]].apply(
        lambda cell: "diverged" if cell.isna().any(axis=None) else text(cell.mean())
    )
    for chosen in choose(tuning, by, *heads).itertuples(index=False, name=None):
        table[chosen] = f"**{table[chosen]}**"
    return markdown(table.unstack(fill_value="").iloc[:, ::-1])


def figure1(tuning: Runs, curves: Runs) -> Section:
    finals = curves.set_index(["optimizer", "rates", "seed"])[["train_loss", "test_error"]]
    gains = (finals.loc["sa-sgd"] - finals.loc["sgd"]).dropna()
    gains = gains.assign(loss=gains.train_loss < 0, error=gains.test_error < 0).groupby("rates")
    lower = {"train loss lower in": ("loss", of), "test error lower in": ("error", of)}
    counts = {"seeds": ("seed", "size"), "diverged": ("diverged", "sum")}
    tuned = "{0.validation_error:.1%} ({0.train_loss:.3f})".format
    text = [
        "## Figure 1: learning curves",
        markdown(cells(curves, "rates", "optimizer", "lr").agg(**counts, **FIGURES)),
        "SA-SGD minus SGD, seed by seed (test error in points):",
        markdown(gains.agg(**FIGURES, **lower)),
        "Tuning: mean validation error (train loss), other seeds:",
        rate_table(tuning, BY_ERROR, tuned, "optimizer"),
    ]
    return "\n\n".join(text), draw_curves(curves)


def grid(part: str, runs: Runs) -> Section:
    axis = "init_scale" if part.startswith("heatmap") else part
    chosen = runs.merge(choose(runs, BY_ERROR, "optimizer", axis)).query("not diverged")
    chosen = cells(chosen.rename(columns={"lr": "chosen lr"}), "optimizer", axis, "chosen lr")
    head = "Learning rate chosen for each by the lowest validation error:"
    text = [f"## {part.capitalize()}", head, markdown(chosen.agg(**FIGURES))]
    if axis != "init_scale":
        return "\n\n".join(text), draw_sizes(runs, axis)
    most = GOOD * runs.train_loss.min()
    runs = runs.assign(good=runs.train_loss <= most)
    region = cells(runs, "optimizer").agg(
        good=("good", of), share=("good", lambda good: f"{100 * good.mean():.0f} %"),
        diverged=("diverged", "sum"),
    )  # fmt: skip
    by_scale = cells(runs, "optimizer", "init_scale").good.any().unstack()
    by_lr = cells(runs, "optimizer", "lr").good.sum().unstack()
    region["scales with a good lr"] = by_scale.agg(of, axis=1)
    region["scales good at one lr"] = by_lr.max(axis=1).map(f"{{}} of {len(by_scale.T)}".format)
    carried = runs.merge(choose(runs[runs.init_scale == 1], BY_ERROR, "optimizer"))
    carried = cells(carried, "optimizer", "lr", "init_scale").train_loss.agg(shown).unstack()
    text += [
        f"Good: final train loss at most {GOOD:g} x the lowest of both, here {most:.3g}:",
        markdown(region),
        "Final train loss at the learning rate chosen at scale 1:",
        markdown(carried.rename(columns="x {:g}".format)),
    ]
    return "\n\n".join(text), draw_heat_maps(runs, most)


def scales(tuning: Runs, compared: Runs, anew: Runs, around: Runs) -> Section:
    def text(cell: Runs) -> str:
        return f"{shown(cell.train_loss)}<br>{percent(cell.test_error, 1)}"

    table = cells(compared, "optimizer", "lr", "init_scale")[[*compared]].apply(text).unstack()
    table = table.rename(CLASSES).rename_axis(index=["initial weights x", "lr"])
    tuned = [f"{text(cell)}<br>lr {cell.lr.iloc[0]:g}" for _, cell in cells(anew, "init_scale")]
    table.loc[("SGD, tuned anew for each", ""), :] = tuned
    near = cells(around, "optimizer", "lr").validation_loss.agg(shown)
    tuning = tuning.drop_duplicates(["optimizer", "init_scale", "lr", "seed"])
    tuned = rate_table(tuning, BY_LOSS, "{0.validation_loss:.3f}".format, "init_scale", "optimizer")
    seeds = [f"seeds {runs.seed.min()} to {runs.seed.max()}" for runs in (tuning, compared, around)]
    text = [
        f"## Learning rates: mean held-out loss, {seeds[0]}", tuned,
        f"## Comparison, {seeds[1]}: final train loss, test error", markdown(table),
        f"## Neighbouring rates at scale 1, {seeds[2]}", markdown(near.to_frame("held-out loss")),
    ]  # fmt: skip
    return "\n\n".join(text), None


@STYLE
def draw_curves(curves: Runs) -> Figure:
    """A row for each pair of learning rates: train loss, validation error."""
    figure = Figure()
    panels = figure.subplots(2, 2, sharex=True, sharey="col")
    for row, rates, title in zip(panels, ("paper", "tuned"), ("the paper's rates", "tuned rates")):
        for (name, lr), cell in cells(curves[curves.rates == rates], "optimizer", "lr"):
            ended = f"\n({of(cell.diverged)} diverged)" if cell.diverged.any() else ""
            style, colour, band = LINES[name]
            look = {"color": colour, "markevery": 2, "label": f"{NAMES[name]}, {lr:g}{ended}"}
            epochs = pd.concat(pd.DataFrame(history, dtype=float) for history in cell.history)
            for panel, field, factor in zip(row, ("train_loss", "validation_error"), (1, 100)):
                at = factor * epochs[field].groupby(level=0).agg(["mean", "min", "max"])
                panel.plot(at.index + 1, at["mean"], style, **look)
                panel.fill_between(at.index + 1, at["min"], at["max"], **band)
        for panel, what in zip(row, ("train loss", "validation error [%]")):
            panel.set(title=f"{what},\n{title}", xlabel="epoch" if rates == "tuned" else "")
            panel.grid()
        row[0].legend()
        log_losses(row[0])
    figure.suptitle(f"mean and range over the seeds, n = {curves.seed.nunique()}")
    return figure


@STYLE
def draw_sizes(runs: Runs, axis: str) -> Figure:
    """Final train loss against the learning rate, a line for each width or depth."""
    figure = Figure()
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for panel, ((name,), mine) in zip(panels, cells(runs, "optimizer")):
        losses = mine.pivot(index="lr", columns=axis, values="train_loss")
        losses.plot(ax=panel, logx=True, fillstyle="none", legend=name == "sgd", **SIZES)
        panel.set_xticks(losses.index, losses.index.map("{:g}".format))
        panel.set_xticks([], minor=True)
        panel.set(title=NAMES[name], xlabel="learning rate", ylabel="final train loss")
        panel.grid()
        log_losses(panel)
    missing = "; no point: diverged" if runs.diverged.any() else ""
    figure.suptitle(f"{axis}: one run each (n = 1){missing}")
    return figure


@STYLE
def draw_heat_maps(runs: Runs, most: float) -> Figure:
    """Final train loss of every run; framed where good, hatched where diverged."""
    figure, grey = Figure(), LinearSegmentedColormap.from_list("grey", ["1.0", "0.5"])
    low, high = runs.train_loss.agg(["min", "max"]).fillna(1.0)
    norm = LogNorm(low, max(min(high, 3.0), 1.01 * low))
    for panel, ((name,), mine) in zip(figure.subplots(2, 1, sharex=True), cells(runs, "optimizer")):
        losses = mine.pivot(index="init_scale", columns="lr", values="train_loss")
        lrs, scales = losses.columns.map("{:g}".format), losses.index.map("{:g}".format)
        panel.patch.set(hatch="xxx", edgecolor="0.55")  # shows where there is no loss
        panel.pcolormesh(lrs, scales, losses, norm=norm, cmap=grey, edgecolor="0.55", lw=0.5)
        for (y, x), loss in np.ndenumerate(losses):
            text = panel.text(x, y, f"{loss:.2f}", ha="center", va="center")
            if math.isnan(loss):
                text.set(text="div.", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
            elif loss <= most:
                text.set_weight("bold")
                panel.add_patch(Rectangle((x - 0.45, y - 0.43), 0.9, 0.86, fill=False, lw=2.2))
        panel.set(title=f"{NAMES[name]}: {of(mine.good)} good", ylabel="initial scale")
    panel.set_xlabel("learning rate")
    figure.suptitle(f"final train loss, one run each (n = 1);\nframed: good, at most {most:.2g}")
    return figure


def log_losses(panel: Axes) -> None:
    """Plain numbers, also where there is no power of ten in sight."""
    panel.set_yscale("log")
    ticks = [digit * 10.0**power for power in range(-6, 6) for digit in (1, 2, 3, 4, 5, 6, 8)]
    panel.yaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
    panel.yaxis.set_major_formatter("{x:g}")
