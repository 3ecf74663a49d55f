"""A picture of a spectrum: histogram, Marchenko-Pastur law, the atom at zero in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lhkernels.hessian.marchenko_pastur import MarchenkoPastur

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lhkernels.hessian.distribution import Spectrum

_LOG_RANGE = 100.0  # 95 % quantile over 5 % quantile from which a logarithmic axis is taken
_DECADES = 14.0  # a logarithmic axis goes no further down than this below the largest


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


def plot(S: Spectrum, ax: Axes | None = None, law: MarchenkoPastur | str | None = "auto") -> Axes:
    """Draw ``S`` on ``ax``; see :meth:`lhkernels.hessian.distribution.Spectrum.plot`."""
    if isinstance(law, str):
        if law != "auto":
            raise ValueError(f"plot: law={law!r}; pass 'auto', None or a MarchenkoPastur")
        law = S.law
    elif law is not None and not isinstance(law, MarchenkoPastur):
        raise TypeError(f"plot: law is a {type(law).__name__}; pass a MarchenkoPastur or None")
    pyplot = _pyplot()
    if ax is None:
        ax = pyplot.subplots(figsize=(6.0, 4.0), dpi=150, layout="constrained")[1]
    style: dict[str, Any] = {"fontsize": 12}
    bars = histogram(S, law)
    if bars is not None:
        ax.stairs(
            bars.heights.numpy(),
            bars.edges.numpy(),
            fill=True,
            facecolor="0.78",
            edgecolor="0.45",
            linewidth=0.8,
            label=f"eigenvalues ({S.method})",
        )
        if bars.log:
            ax.set_xscale("log")
            _mark_unresolved(ax, S, bars)
        top = float(bars.heights.max())
        if law is not None:
            x, y = curve(law, bars)
            ax.plot(x.numpy(), y.numpy(), "k--", linewidth=2.0, label=_law_label(law))
            shown = y[x > bars.edges[1]] if law.ratio == 1.0 else y
            top = max(top, float(shown.max()) if shown.numel() else 0.0)
        ax.set_ylim(0.0, 1.35 * top)  # room for the legend above the bars
    ax.set_xlabel("eigenvalue", **style)
    ax.set_ylabel("fraction per decade" if bars is not None and bars.log else "density", **style)
    ax.tick_params(labelsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    _mark_zero(ax, S, law)
    if bars is not None:
        ax.legend(loc="upper right", fontsize=10, frameon=False)
    return ax


def histogram(S: Spectrum, law: MarchenkoPastur | None = None, bins: int = 50) -> Bars | None:
    """Bars of equal width, from the CDF; None for a spectrum of zeros only.

    The axis is logarithmic where all eigenvalues are >= 0, no law is drawn, and the 95 % quantile
    of the non-zero ones is more than 100 times the 5 % quantile.
    """
    keep = S.eigenvalues != 0
    values, weights = S.eigenvalues[keep], S.weights[keep]
    if not values.numel():
        return None
    low, high = float(values[0]), float(values[-1])
    part = weights.cumsum(0) / weights.sum()
    at = torch.searchsorted(part, torch.tensor([0.05, 0.95], dtype=part.dtype))
    inner = values[at.clamp(max=values.numel() - 1)]
    log = law is None and low > 0 and float(inner[1] / inner[0]) > _LOG_RANGE
    if log:
        low = max(S.smallest_nonzero, high / 10.0**_DECADES)
        start, stop = math.log10(low) - 0.02, math.log10(high) + 0.02
        edges = torch.logspace(start, stop, bins + 1, dtype=torch.float64)
        widths = edges.log10().diff()
    else:
        if law is not None:
            low, high = min(low, law.support.low), max(high, law.support.high)
        margin = 0.01 * (high - low) if high > low else 0.05 * abs(high)
        start = 0.0 if 0.0 <= low < 0.1 * high else low - margin
        edges = torch.linspace(start, high + margin, bins + 1, dtype=torch.float64)
        widths = edges.diff()
    mass = S.cdf(edges).diff()
    # A bar is the interval (left, right]: that with zero in it loses the atom.
    mass[(edges[:-1] < 0) & (edges[1:] >= 0)] -= S.zero_fraction
    return Bars(edges, mass.clamp(min=0.0) / widths, log)


def curve(law: MarchenkoPastur, bars: Bars, points: int = 600) -> tuple[Tensor, Tensor]:
    """The law's density on its support, (points,) each; closer points near its ends."""
    low, high = law.support
    angle = torch.linspace(0.0, math.pi, points, dtype=torch.float64)[1 if low == 0 else 0 :]
    x = low + (high - low) * torch.sin(angle / 2.0) ** 2
    y = law.pdf(x)
    return x, y * x * math.log(10.0) if bars.log else y


def _mark_unresolved(ax: Axes, S: Spectrum, bars: Bars) -> None:
    """Hatch the part of a logarithmic axis where Ritz values are smaller than their errors."""
    values = S.eigenvalues[(S.eigenvalues != 0) & (S.errors > S.eigenvalues.abs())]
    start = float(bars.edges[0])
    if values.numel() and float(values.max()) > start:
        ax.axvspan(
            start, float(values.max()), facecolor="none", edgecolor="0.6", hatch="//",
            linewidth=0.0, label="not resolved",
        )  # fmt: skip


def _mark_zero(ax: Axes, S: Spectrum, law: MarchenkoPastur | None) -> None:
    zeros = S.zero_fraction
    expected = 0.0 if law is None else law.atom
    if zeros == 0.0 and expected == 0.0:
        return
    text = f"zero: {_percent(zeros)} of {S.dim:,}"
    if law is not None:
        text += f"\n(law: {_percent(expected)})"
    ax.text(
        0.02, 0.98, text, transform=ax.transAxes, ha="left", va="top", fontsize=11,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "black"},
    )  # fmt: skip


def _percent(part: float) -> str:
    return f"{100.0 * part:.3g} %"


def _law_label(law: MarchenkoPastur) -> str:
    return f"Marchenko-Pastur, c = {law.ratio:.3g}" + (", unit rows" if law.normalized else "")


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot: the package matplotlib is missing: pip install lhkernels[hessian]"
        ) from error
    return pyplot
