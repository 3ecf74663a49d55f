"""A picture of a spectrum: bars, Marchenko-Pastur law, the atom at zero in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lhkernels.hessian.marchenko_pastur import MarchenkoPastur

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Style = dict[str, Any]
GREY: Style = {"facecolor": "0.78", "edgecolor": "0.45", "linewidth": 0.8}
HATCHED: Style = {"facecolor": "none", "edgecolor": "0.6", "linewidth": 0.0, "hatch": "//"}
BOX: Style = {"facecolor": "white", "edgecolor": "black", "boxstyle": "round"}


class Bars(NamedTuple):
    """Histogram of the non-zero eigenvalues.

    Attributes:
        edges: (N + 1,), float64.
        heights: (N,): density, or eigenvalues per decade on a logarithmic axis; as parts of dim.
        log: whether the axis is logarithmic.
    """

    edges: Tensor
    heights: Tensor
    log: bool


def draw(
    ax: Axes | None,
    bars: Bars | None,
    law: MarchenkoPastur | None,
    method: str,
    unresolved: Tensor,
    zeros: float,
    dim: int,
) -> Axes:
    """Draw on ``ax``, or on a new figure.

    Args:
        ax: matplotlib axes.
        bars: None where all eigenvalues are zero.
        law: drawn over the bars.
        method: how the eigenvalues were found.
        unresolved: eigenvalues that are smaller than their errors; a logarithmic axis is hatched
            up to the largest.
        zeros: the part of the ``dim`` eigenvalues that are zero.
        dim: how many eigenvalues there are.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot: the package matplotlib is missing: pip install lhkernels[hessian]"
        ) from error
    if ax is None:
        ax = pyplot.subplots(figsize=(6.0, 4.0), dpi=150, layout="constrained")[1]
    if bars is not None:
        _draw_bars(ax, bars, law, f"eigenvalues ({method})")
        start, stop = float(bars.edges[0]), float(unresolved.max()) if len(unresolved) else 0.0
        if bars.log and stop > start:
            ax.axvspan(start, stop, label="not resolved", **HATCHED)
        ax.legend(loc="upper right", fontsize=10, frameon=False)
    ax.set_xlabel("eigenvalue", fontsize=12)
    per_decade = bars is not None and bars.log
    ax.set_ylabel("fraction per decade" if per_decade else "density", fontsize=12)
    ax.tick_params(labelsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    if zeros > 0.0 or (law is not None and law.atom > 0.0):
        text = f"zero: {100.0 * zeros:.3g} % of {dim:,}"
        text += "" if law is None else f"\n(law: {100.0 * law.atom:.3g} %)"
        ax.text(0.02, 0.98, text, transform=ax.transAxes, ha="left", va="top", bbox=BOX, size=11)
    return ax


def _draw_bars(ax: Axes, bars: Bars, law: MarchenkoPastur | None, label: str) -> None:
    ax.stairs(bars.heights.numpy(), bars.edges.numpy(), fill=True, label=label, **GREY)
    if bars.log:
        ax.set_xscale("log")
    top = float(bars.heights.max())
    if law is not None:
        x, y = curve(law, bars)
        name = f"Marchenko-Pastur, c = {law.ratio:.3g}" + (", unit rows" * law.normalized)
        ax.plot(x.numpy(), y.numpy(), "k--", linewidth=2.0, label=name)
        shown = y[x > bars.edges[1]] if law.ratio == 1.0 else y
        top = max(top, float(shown.max()) if shown.numel() else 0.0)
    ax.set_ylim(0.0, 1.35 * top)  # room for the legend above the bars


def curve(law: MarchenkoPastur, bars: Bars, points: int = 600) -> tuple[Tensor, Tensor]:
    """The law's density on its support, (points,) each; closer points near its ends."""
    low, high = law.support
    angle = torch.linspace(0.0, math.pi, points, dtype=torch.float64)[1 if low == 0 else 0 :]
    x = low + (high - low) * torch.sin(angle / 2.0) ** 2
    y = law.pdf(x)
    return x, y * x * math.log(10.0) if bars.log else y
