"""A spectrum in letters: rows of numbers and a histogram, for terminals of any width."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

BINS = 12
LOG_ABOVE = 100.0  # ratio of the largest to the smallest above which bins are logarithmic


def number(value: float | None, digits: int = 4) -> str:
    """Four digits, short."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """A share in percent; 0 and 100 only where they are exact."""
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 < share < 1:
        return ">99.9%"
    return f"{100 * share:.1f}%"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Columns under their header; the last columns are left out where ``width`` is too small.

    The first column is left-aligned and is shortened to a third of the width.
    """
    limit = max(8, width // 3)
    cells = [[_shortened(row[0], limit), *row[1:]] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    shown = len(widths)
    while shown > 2 and sum(widths[:shown]) + 2 * (shown - 1) > width:
        shown -= 1
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row[:shown], widths))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    left_out = header[shown:]
    if left_out:
        lines += wrapped(f"(too narrow for: {', '.join(left_out)}; --json has them)", width)
    return "\n".join(lines)


def pairs(rows: Sequence[tuple[str, str]], width: int) -> str:
    """Names and values, a line each; long values go on below themselves."""
    indent = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, value in rows:
        parts = wrapped(value, max(12, width - indent))
        lines.append(name.ljust(indent) + parts[0])
        lines += [" " * indent + part for part in parts[1:]]
    return "\n".join(lines)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words, at most ``width`` long where the words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if len(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def histogram(
    values: Sequence[float], weights: Sequence[float], width: int, bar: str = "█"
) -> list[str]:
    """A line per bin of the non-zero eigenvalues, and one for zero.

    Args:
        values: eigenvalues; zeros are exactly 0.
        weights: the share of each, sum 1.
        width: of the longest line, in characters.
        bar: one character.
    """
    zero = sum(w for v, w in zip(values, weights) if v == 0)
    rows = [("0", zero)] if zero > 0 else []
    kept = [(v, w) for v, w in zip(values, weights) if v != 0]
    if kept:
        edges = bin_edges(min(kept)[0], max(kept)[0])
        shares = [0.0] * (len(edges) - 1)
        for value, weight in kept:
            shares[_bin(value, edges)] += weight
        labels = [f"{number(a, 3)} to {number(b, 3)}" for a, b in itertools.pairwise(edges)]
        if len(shares) == 1:
            labels = [number(edges[0])]
        rows += zip(labels, shares)
    label_width = max(len(label) for label, _ in rows)
    room = max(4, width - label_width - 10)
    most = max(share for _, share in rows)
    lines = []
    for label, share in rows:
        length = round(room * share / most)
        mark = bar * length if length or share == 0 else "."
        lines.append(f"{label.rjust(label_width)}  {percent(share):>6}  {mark}".rstrip())
    return lines


def bin_edges(low: float, high: float) -> list[float]:
    """Edges from ``low`` to ``high``, in equal ratios for a wide range of positive values."""
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return [low, high]
    if low > 0 and high / low > LOG_ABOVE:
        ratio = (high / low) ** (1 / BINS)
        inner = [low * ratio**i for i in range(1, BINS)]
    else:
        inner = [low + (high - low) * i / BINS for i in range(1, BINS)]
    return [low, *inner, high]


def _bin(value: float, edges: list[float]) -> int:
    """The bin that holds ``value``; a value on an inner edge is in the upper one."""
    return max(0, min(len(edges) - 2, sum(edge <= value for edge in edges) - 1))


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else ".." + text[-(width - 2) :]
