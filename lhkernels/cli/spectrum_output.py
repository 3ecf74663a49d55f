"""What ``lhkernels spectrum`` shows: a table of blocks, one block, JSON, a picture."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lhkernels.cli.errors import CommandError, writing
from lhkernels.cli.spectrum_blocks import Block, Recorded
from lhkernels.hessian import LocalHessian, Spectrum
from lhkernels.tables import show, table, to_text

Found: TypeAlias = tuple[Block, LocalHessian, Spectrum]

MOMENTS = 4
BINS = 12
LOG_ABOVE = 100.0  # ratio of the largest to the smallest above which bins are logarithmic


def show_list(blocks: list[Block], seen: list[Recorded], *, as_json: bool) -> None:
    """The blocks with the shapes that pass through them."""
    heads = ("block", "modules", "input", "output", "weights")
    rows = []
    for block, what in zip(blocks, seen):
        weights = sum(p.numel() for p in block.module.parameters() if p.ndim >= 2)
        rows.append((block.name, block.what, shape(what.inputs), shape(what.output), weights))
    if as_json:
        print(json.dumps([dict(zip(heads, row)) for row in rows], indent=2))
    else:
        show_what_fits(heads, rows)


def show_heading(args: argparse.Namespace, images: Tensor) -> None:
    """What all of the spectra are of."""
    what = "H_W, weights" if args.wrt == "weight" else "H_z, input"
    kind = "full Hessian" if args.kind == "full" else "Gauss-Newton"
    parts = [f"{args.model} on {args.data} {shape(images)}", what, kind, args.dtype]
    parts += [f"init {args.init}"] if args.init != "default" else []
    parts += [f"weights x {args.init_scale:g}"] if args.init_scale != 1 else []
    show(", ".join(parts), "")


def show_blocks(found: list[Found]) -> None:
    """A row per block."""
    heads = ("block", "dim", "largest", "smallest", "cond", "zero", "mean", "method", "form")
    rows = []
    for block, H, S in found:
        extremes = number(S.largest), number(S.smallest_nonzero), number(S.condition_number, 3)
        mean = number(trace(H, S)[0] / S.dim)
        zero = percent(S.zero_fraction)
        rows.append((block.name, S.dim, *extremes, zero, mean, S.method, form(H)))
    show_what_fits(heads, rows)


def show_what_fits(heads: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
    """A table of as many columns, the first ones, as the terminal has room for."""
    for count in range(len(heads), 1, -1):
        shown = table(heads[:count], [row[:count] for row in rows])
        if len(to_text(shown, width=None).split("\n")[1]) <= get_terminal_size().columns:
            break
    show(shown)
    if count < len(heads):
        show(f"(too narrow for: {', '.join(heads[count:])}; --json has them)")


def show_block(block: Block, H: LocalHessian, S: Spectrum) -> None:
    """All about one spectrum, and its histogram."""
    sampled = f", {S.probes} probes x {S.steps} steps" if S.probes else ""
    bounds, (total, error) = S.bounds, trace(H, S)
    smallest = f"{number(S.smallest_nonzero, 6)} ± {number(bounds.smallest_nonzero, 2)}"
    rows = [
        ("dim", S.dim),
        ("form", form(H)),
        ("method", S.method + sampled),
        ("largest", f"{number(S.largest, 6)} ± {number(bounds.largest, 2)}"),
        ("smallest", f"{smallest} (non-zero)"),
        ("condition", number(S.condition_number, 6)),
        ("zero", f"{percent(S.zero_fraction)} (up to {number(S.zero_tolerance, 3)} counts as 0)"),
        ("trace", number(total, 6) + (f" ± {number(error, 2)}" if error else "")),
        ("moments", "  ".join(number(moment["value"]) for moment in moments(S))),
    ]
    show(table(("block", f"{block.name} ({block.what})"), rows, left=(0, 1)), "")
    bins = histogram(S)
    room = min(80, get_terminal_size().columns) - max(len(label) for label, _ in bins) - 10
    unit = max(4, room) / max(part for _, part in bins)
    char = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    bars = [(at, percent(x), char * round(x * unit) or ("." if x else "")) for at, x in bins]
    show(table(("eigenvalues", "share", ""), bars, left=(2,)))


def histogram(S: Spectrum) -> list[tuple[str, float]]:
    """Bins of the non-zero eigenvalues and one for zero, each with its share.

    They are of equal width; in equal ratios for a wide range of positive values. A value between
    two bins is in the upper one.
    """
    kept = S.eigenvalues != 0
    values, weights = S.eigenvalues[kept], S.weights[kept]
    zero = float(S.weights[~kept].sum())
    rows = [("0", zero)] if zero > 0 else []
    if not len(values):
        return rows
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return [*rows, (number(low), float(weights.sum()))]
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    if low > 0 and high / low > LOG_ABOVE:
        edges = torch.logspace(math.log10(low), math.log10(high), BINS + 1, dtype=torch.float64)
    at = torch.bucketize(values, edges[1:-1], right=True)
    shares = torch.bincount(at, weights, BINS)
    labels = [f"{number(a, 3)} to {number(b, 3)}" for a, b in itertools.pairwise(edges.tolist())]
    return [*rows, *zip(labels, shares.tolist())]


def moments(S: Spectrum) -> list[dict[str, float]]:
    """trace(H^k) / dim for k = 1 to 4, as far as the Lanczos steps allow."""
    highest = MOMENTS if not S.probes else min(MOMENTS, 2 * S.steps - 1)
    found = [S.moment(k) for k in range(1, highest + 1)]
    return [{"value": m.value, "standard_error": m.standard_error} for m in found]


def trace(H: LocalHessian, S: Spectrum) -> tuple[float, float]:
    """Its value and standard error: a closed form's, which has none, or the spectrum's."""
    exact = H.known_trace()
    if exact is not None:
        return float(exact), 0.0
    value, error = S.moment(1)
    return value * S.dim, error * S.dim if S.probes else 0.0


def print_json(args: argparse.Namespace, found: list[Found]) -> None:
    """The options and a row per block; what does not exist is null."""
    hidden = ("run", "command", "json", "list", "plot")
    options = {name: value for name, value in vars(args).items() if name not in hidden}
    report = {"options": options, "blocks": [as_json(*one) for one in found]}
    print(json.dumps(report, indent=2, allow_nan=False, default=str))


def as_json(block: Block, H: LocalHessian, S: Spectrum) -> dict[str, Any]:
    """A row for programs."""
    names = "largest smallest smallest_nonzero bounds condition_number zero_fraction zero_tolerance"
    row = {"block": block.name, "modules": block.what, "dim": S.dim, "form": form(H)}
    row |= {name: getattr(S, name) for name in ("method", "probes", "steps", *names.split())}
    row["bounds"] = finite(S.bounds._asdict())
    row["trace"], row["trace_standard_error"] = trace(H, S)
    return finite(row | {"moments": moments(S)})


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """None for infinity and NaN, which JSON has not."""
    bad = {key for key, x in row.items() if isinstance(x, float) and not math.isfinite(x)}
    return {key: None if key in bad else value for key, value in row.items()}


def draw(found: list[Found], file: Path) -> None:
    """A histogram per block, in a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError(f"--plot needs matplotlib: {error}") from error
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(5.5 * columns, 4 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for (block, _, S), axes in zip(found, panels):
        S.plot(axes)
        axes.set_title(f"{block.name}, {block.what}")
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    with writing("--plot", file):
        figure.savefig(file)
    print(f"\nwritten to {file}", file=sys.stderr)


def number(value: float | None, digits: int = 4) -> str:
    """Four digits, short."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def percent(share: float) -> str:
    """A share in percent; 0 and 100 only where they are exact."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 < share < 1 else f"{100 * share:.1f}%"


def form(H: LocalHessian) -> str:
    """Whether the block has a closed form."""
    return "autograd" if H.form == "autograd" else "closed"


def shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
