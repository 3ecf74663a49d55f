"""Time how cost grows with tensors, elements, vectors and the batch.

Steps against the number of tensors (10 million elements in 1 to 10,000) and of elements (in 10
tensors), Hessian-vector products (conv2d 64->64 + BN at 16x16) against the number of vectors and
the batch. A point is a comparison in alternation, its times medians of passes over all points: a
machine that stalls for seconds spoils one. Slopes (log-log) are fitted to the upper ends.
"""

import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import hvp, step
from bench.blocks import Case
from bench.common import OURS, Measured, Rows, Table, add_timing, shown
from bench.timing import available
from lhkernels.cli import options

PARTS: dict[str, tuple[str, tuple[int, ...]]] = {  # the x axis and its points; the largest last
    "step-tensors": ("tensors, same elements", (1, 10, 100, 1_000, 10_000)),
    "hvp-columns": ("vectors K", (1, 2, 4, 8, 16, 32, 64)),
    "hvp-batch": ("batch N", (8, 16, 32, 64, 128)),
    "step-elements": ("elements", tuple(10**k for k in range(3, 16))),
}
STEP_NAMES = [step.BASELINE, OURS, "torch foreach", "torch loop"]
HVP_NAMES = [OURS, "double backward", "jvp + vjp loop", "vmap(jvp + vjp)"]
BLOCK = Case("conv2d", 64, 64, 32, 16, 16)


def add_options(parser: Any) -> None:
    add, known = parser.add_argument, options.names(lambda: PARTS)
    add("--parts", type=known, metavar="A,B", help=f"of {', '.join(PARTS)} (default: all)")
    many = options.number(float, lambda n: 1000 <= n < math.inf, "finite and >= 1000")
    most = "for step-elements, as far as memory allows (default: 1e9)"
    add("--max-elements", type=many, default=1e9, help=most)
    add("--plots", type=Path, metavar="DIR", help="write DIR/scaling-<part>.png")
    often = "median of N passes (default: 3)"
    add("--passes", type=options.positive_int, default=3, metavar="N", help=often)
    add_timing(parser, 0.2, "a point and pass")


def measure(args: Any) -> Measured:
    """A part's rows at a time, when all passes are over: medians by size and contender."""
    found: dict[str, dict[tuple[int, str], Rows]] = {part: {} for part in args.parts or PARTS}
    for i in range(args.passes):
        for part, rows in found.items():
            print(f"pass {i + 1} of {args.passes}: {part} ...", file=sys.stderr, flush=True)
            for x, compared in points(args, part):
                for row in (row for row in compared if row["ms"] is not None):
                    rows.setdefault((x, row["contender"]), []).append(row)
    for part, rows in found.items():
        times = ["ms", "ms_product"] if part.startswith("hvp") else ["ms"]
        yield [
            {"kind": part, "x": x, "contender": name, "ms_product": None}
            | {field: statistics.median(row[field] for row in same) for field in times}
            for (x, name), same in rows.items()
        ]


def points(args: Any, part: str) -> Iterator[tuple[int, Rows]]:
    """Each x of a part, and the comparison there."""
    for x in PARTS[part][1]:
        if part.startswith("hvp"):
            case = replace(BLOCK, **{part.removeprefix("hvp-"): x})
            yield x, hvp.compare(args, case, HVP_NAMES)
            continue
        elements, tensors = (x, 10) if part == "step-elements" else (10_000_000, x)
        # Each has parameters, momentum and, unless they are many, gradients of its own; those that
        # are not fused have temporaries. Only the fused ones are left where memory is short.
        own, shared = (2, 1) if elements > step.LARGE else (3, 0)
        room = 0.9 * available(args.device) / (4 * elements)
        if (part == "step-elements" and x > args.max_elements) or room <= 2 * own + shared:
            return
        chosen = STEP_NAMES if room > 4 * own + shared + 1 else STEP_NAMES[:2]
        rows, rest = divmod(elements // 4, tensors)
        yield x, step.compare(args, [(rows + (i < rest), 4) for i in range(tensors)], chosen)


def summary(args: Any, rows: Rows) -> dict[str, Any]:
    """How often it was measured, and slopes."""
    return {"passes": args.passes, "slopes": slopes(rows)}


def curves(rows: Rows, part: str, field: str = "ms") -> dict[str, dict[int, float]]:
    """Milliseconds by x, by contender."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["kind"] == part and row[field] is not None:
            found.setdefault(row["contender"], {})[row["x"]] = row[field]
    return found


def fit(curve: dict[int, float], part: str) -> tuple[float, dict[int, float]] | None:
    """The slope of the last three points (of tensors: two), and their power law at both ends."""
    last = sorted(curve.items())[-2 if part == "step-tensors" else -3 :]
    if len(last) < 2:
        return None
    logs = [[math.log(value) for value in values] for values in zip(*last)]
    slope, intercept = statistics.linear_regression(*logs)
    return slope, {x: math.exp(intercept) * x**slope for x, _ in (last[0], last[-1])}


def slopes(rows: Rows) -> dict[str, dict[str, float]]:
    """Fitted slope by part and contender."""
    laws = {part: {n: fit(c, part) for n, c in curves(rows, part).items()} for part in PARTS}
    known = {part: {n: law[0] for n, law in of.items() if law} for part, of in laws.items()}
    return {part: of for part, of in known.items() if of}


def cells(rows: Rows) -> Table:
    """A part's milliseconds, a column a contender and a row a size; slopes below."""
    part = rows[0]["kind"]
    found, laws = curves(rows, part), slopes(rows).get(part, {})
    lines = [
        [f"{x:,}", *(shown(curve.get(x), spec=".3f") for curve in found.values())]
        for x in sorted(set().union(*found.values()))
    ]
    lines.append(["slope", *(shown(laws.get(name), spec=".2f") for name in found)])
    return {"columns": [PARTS[part][0], *found], "rows": lines, "title": f"{part}: ms"}


def exponents(results: Rows) -> Table:
    """A line a part with the slopes of all contenders."""
    lines = []
    for part, laws in slopes(results).items():
        what = "`opt.step()`" if part.startswith("step") else "H V, fresh"
        lines.append([what, PARTS[part][0], ", ".join(f"{n} {s:.2f}" for n, s in laws.items())])
    heads = ["time grows as x to the power", "x", "contenders"]
    return {"columns": heads, "rows": lines, "left": (0, 1, 2)}
