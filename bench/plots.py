"""Pictures of steps and of how cost grows, told apart by markers and dashes too."""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

from bench.common import OURS
from bench.scaling import PARTS, curves, fit

# Colours light or dark enough to differ in grey.
OURS_STYLE = {"color": "#c1440e", "marker": "s", "ls": "-"}
COLOURS = ("#000000", "#1f6fb2", "#6b6b6b", "#8e5ea2", "#3b8f5a", "#b59a00", "#4d4d4d")
DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))


def draw_scaling(report: dict[str, Any], folder: Path) -> list[Path]:
    """Milliseconds against size for each part, log-log; upper ends with their slopes."""
    drawn = []
    for part in dict.fromkeys(row["kind"] for row in report["results"]):
        axes = new_axes()
        found = curves(report["results"], part)
        lines = [(name, found[name], style) for name, style in styles(found).items()]
        if again := curves(report["results"], part, "ms_product").get(OURS):
            style = OURS_STYLE | {"ls": "--", "mfc": "white"}
            lines.append(("lhkernels, product only", again, style))
        for label, curve, style in lines:
            if law := fit(curve, part):
                axes.plot(*zip(*law[1].items()), color=style["color"], lw=6, alpha=0.25)
                label += f": slope {law[0]:.2f}"
            if law and part == "step-tensors":
                (first, low), *_, (last, high) = curve.items()
                label += f", {1000 * (high - low) / (last - first):.2g} µs a tensor"
            width = 2.4 if style["color"] == OURS_STYLE["color"] else 1.6
            axes.plot(*zip(*curve.items()), label=label, ms=7, lw=width, **style)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=10)
        what = "opt.step() [ms]" if part.startswith("step") else "H V, one-time part included [ms]"
        axes.set(xlabel=PARTS[part], ylabel=what, title="slopes are of the shaded part")
        drawn.append(folder / f"scaling-{part}.png")
        save(axes, report, set().union(*found.values()), drawn[-1])
    return drawn


def draw_roofline(report: dict[str, Any], folder: Path) -> list[Path]:
    """Bytes that a step reads and writes for an element against the rate at which it does so.

    The horizontal line is the measured rate of a copy; what fits a cache lies above it. Along a
    grey line the time for an element is the same: what counts is to be high *above* the lines, and
    few bytes get there at a lower rate. Nothing is drawn from files that don't count the bytes.
    """
    rows = [r for r in report["results"] if r.get("bytes_per_element") and r["dtype"] == "float32"]
    if not rows:
        return []
    axes = new_axes()
    for name, style in styles(r["contender"] for r in rows).items():
        own = [r for r in rows if r["contender"] == name]
        xs = [r["bytes_per_element"] for r in own]
        ys = [x * r["elements"] / (r["ms"] * 1e6) for x, r in zip(xs, own)]
        hollow = {} if name == OURS else {"mfc": "none", "zorder": 3}  # shows what it lies upon
        axes.plot(xs, ys, label=name, ms=9, mew=1.6, **style | {"ls": "none"} | hollow)
    copy = max(r["gb_per_s"] / r["of_copy"] for r in rows)
    axes.axhline(copy, color="k", lw=1)
    left, right, bottom, top = axes.axis()
    left, right, bottom, top = axes.axis((left / 1.3, right * 1.3, bottom / 1.2, top * 1.3))
    axes.text(left * 1.03, copy * 1.02, f"a copy: {copy:.3g} GB/s", va="bottom")
    for ns in (2.0**k for k in range(-12, 9)):
        start, end = max(left, bottom * ns), min(right, top * ns)
        if start < end:
            axes.plot([start, end], [start / ns, end / ns], color="0.75", lw=0.8, zorder=1)
            axes.text(end, end / ns, f"{ns:.2g} ns", color="0.4", size=9, ha="right", va="top")
    x_label = "bytes read and written for an element of the parameters"
    axes.set(xlabel=x_label, ylabel="achieved GB/s")
    axes.set(title="opt.step(), float32: a point a network; grey: time for an element")
    axes.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    save(axes, report, (10, 20, 44, 68, 100), folder / "roofline.png")
    return [folder / "roofline.png"]


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour, a marker and dashes for each name; ours always the same."""
    others = (dict(zip(OURS_STYLE, style)) for style in cycle(zip(COLOURS, "o^DvPX*", DASHES)))
    return {name: OURS_STYLE if name == OURS else next(others) for name in dict.fromkeys(names)}


def new_axes() -> Any:
    """Log-log, at a phone's width."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6.4, 5.4), dpi=130, layout="constrained").subplots()
    axes.set(xscale="log", yscale="log")
    return axes


def save(axes: Any, report: dict[str, Any], ticks: Iterable[int], path: Path) -> None:
    """As PNG, with plain numbers and the machine in the title."""
    from matplotlib.ticker import LogLocator, NullLocator

    machine = "{device}, {threads} threads".format(**report["environment"])
    axes.set_title(f"{machine}\n{axes.get_title()}", fontsize=11)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    labels = {x: f"1e{len(str(x)) - 1}" if max(ticks) >= 1e5 else f"{x:,}" for x in sorted(ticks)}
    axes.set_xticks(list(labels), list(labels.values()))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path)
