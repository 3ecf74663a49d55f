"""Pictures of the benchmarks: the roofline of steps, and how cost grows.

Told apart by markers and dashes too, and drawn at a phone's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import peers, step
from bench.scaling import FITTED, curves, fit

# Colour (light enough or dark enough to differ in grey), marker, dashes; ours is the thick one.
OURS_STYLE = ("#c1440e", "s", "-")
STYLES = [
    ("#000000", "o", "--"),
    ("#1f6fb2", "^", ":"),
    ("#6b6b6b", "D", "-."),
    ("#8e5ea2", "v", (0, (5, 1))),
    ("#3b8f5a", "P", (0, (1, 1))),
    ("#b59a00", "X", (0, (3, 1, 1, 1, 1, 1))),
    ("#4d4d4d", "*", (0, (8, 3))),
]

X_LABELS = {
    "step-tensors": "tensors (10 million elements in all)",
    "step-elements": "elements (in 10 tensors)",
    "hvp-columns": "vectors K",
    "hvp-batch": "batch N",
}
Y_LABELS = {"step": "opt.step() [ms]", "hvp": "H V, one-time part included [ms]"}


def draw_scaling(points: Sequence[dict[str, Any]], kind: str, title: str, path: Path) -> None:
    """Milliseconds against size, log-log; each curve's upper end with its fitted slope."""
    figure, axes = _figure()
    found = curves(points, kind)
    for name, (color, marker, dashes) in styles(list(found)).items():
        xs, ys = found[name]
        law = fit(xs, ys, FITTED[kind])
        text = name if law is None else f"{name}: slope {law.slope:.2f}"
        if law is not None and kind == "step-tensors":
            text += f", {1000 * (ys[-1] - ys[0]) / (xs[-1] - xs[0]):.2g} µs a tensor"
        width = 2.6 if name == step.OURS else 1.6
        axes.plot(xs, ys, color=color, marker=marker, linestyle=dashes, lw=width, label=text, ms=7)
        if law is not None:
            ends = [law.start, law.end]
            axes.plot(ends, [law.at(x) for x in ends], color=color, lw=6, alpha=0.25)
    again = curves(points, kind, "ms_product")
    if step.OURS in again:
        xs, ys = again[step.OURS]
        law = fit(xs, ys, FITTED[kind])
        text = "lhkernels, product only" + ("" if law is None else f": slope {law.slope:.2f}")
        color = OURS_STYLE[0]
        axes.plot(xs, ys, color=color, marker="s", mfc="white", ls="--", lw=2, label=text, ms=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes, sorted({x for xs, _ in found.values() for x in xs}))
    axes.set_xlabel(X_LABELS[kind])
    axes.set_ylabel(Y_LABELS[kind.partition("-")[0]])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=10)
    axes.set_title(f"{title}\nslopes are of the shaded part", fontsize=11)
    save(figure, path)


def draw_all_scaling(report: dict[str, Any], folder: Path) -> list[Path]:
    """A picture for each part that was measured; returns the files."""
    environment = report["environment"]
    title = f"{environment['device']}, {environment['threads']} threads"
    drawn = []
    for kind in dict.fromkeys(row["kind"] for row in report["results"]):
        drawn.append(folder / f"scaling-{kind}.png")
        draw_scaling(report["results"], kind, title, drawn[-1])
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
    figure, axes = _figure()
    rates = {r["gb_per_s"] / r["of_copy"] for r in rows}
    names = list(dict.fromkeys(r["contender"] for r in rows))
    for name, (color, marker, _) in styles(names).items():
        own = [r for r in rows if r["contender"] == name]
        xs = [r["bytes_per_element"] for r in own]
        ys = [x * r["elements"] / (r["ms"] * 1e6) for x, r in zip(xs, own)]
        ours = name == step.OURS
        face, order = (color, 2) if ours else ("none", 3)  # hollow ones show what they lie upon
        axes.scatter(
            xs, ys, s=90, marker=marker, ec=color, fc=face, lw=1.6, label=name, zorder=order
        )
    copy = max(rates)
    axes.axhline(copy, color="k", lw=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    low, high = low / 1.3, high * 1.3
    bottom, top = axes.get_ylim()
    bottom, top = bottom / 1.2, max(top, copy) * 1.3
    axes.text(low * 1.03, copy * 1.02, f"a copy: {copy:.3g} GB/s", fontsize=10, va="bottom")
    for ns in (2.0**k for k in range(-12, 9)):
        start, end = max(low, bottom * ns), min(high, top * ns)
        if start < end:
            axes.plot([start, end], [start / ns, end / ns], color="0.75", lw=0.8, zorder=1)
            text = f"{ns:.2g} ns"
            axes.text(end, end / ns, text, color="0.4", fontsize=9, ha="right", va="top")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)
    _plain_ticks(axes, [10, 20, 44, 68, 100])
    axes.set_xlabel("bytes read and written for an element of the parameters")
    axes.set_ylabel("achieved GB/s")
    axes.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes.set_title(
        f"opt.step(), float32: a point a network; grey: time for an element\n"
        f"{report['environment']['device']}, {report['environment']['threads']} threads",
        fontsize=11,
    )
    path = folder / "roofline.png"
    save(figure, path)
    return [path]


def styles(names: Sequence[str]) -> dict[str, tuple[str, str, Any]]:
    """A colour, a marker and dashes for each name; ours always the same."""
    others = iter(STYLES * (1 + len(names) // len(STYLES)))
    return {name: OURS_STYLE if name in (step.OURS, peers.OURS) else next(others) for name in names}


def save(figure: Any, path: Path) -> None:
    """As PNG, in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=11)
    axes.xaxis.label.set_fontsize(12)
    axes.yaxis.label.set_fontsize(12)
    return figure, axes


def _plain_ticks(axes: Any, ticks: Sequence[float]) -> None:
    """Ticks of the x axis where the points are; all numbers plain."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")

    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    many = any(t >= 1e5 for t in ticks)
    axes.xaxis.set_major_formatter(lambda x, _: f"1e{len(f'{x:.0f}') - 1}" if many else f"{x:,.0f}")
