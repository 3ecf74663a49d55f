"""``python -m lhkernels bench scaling``: how cost grows with size."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cli_options import add_common, chosen, device_of, finish, warn_if_busy
from lhkernels.cli.errors import CommandError, check_writable, writing

KINDS = ("step-tensors", "hvp-columns", "hvp-batch", "step-elements")  # the largest last


def add_kind(kinds: Any) -> None:
    """Register the benchmark."""
    parser = kinds.add_parser(
        "scaling",
        help="how cost grows with tensors, elements, vectors and the batch",
        description="Step time against the number of tensors (10 million elements in 1 to 10,000) "
        "and of elements (in 10 tensors); Hessian-vector products (conv2d 64->64 + BN at 16x16) "
        "against the number of vectors and the batch. Slopes are of the upper end, log-log.",
    )
    parser.add_argument("--parts", metavar="A,B", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument(
        "--max-elements",
        type=float,
        default=1e9,
        help="for step-elements, as far as memory allows (default: 1e9)",
    )
    parser.add_argument("--plots", metavar="DIR", help="write DIR/scaling-<part>.png")
    parser.add_argument(
        "--passes", type=int, default=3, metavar="N", help="median of N passes (default: 3)"
    )
    add_common(parser, 0.2, "a point and pass")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Time, and print tables or JSON."""
    from bench import plots, scaling
    from lhkernels import environment

    device = device_of(args)
    if not 1000 <= args.max_elements < math.inf:
        raise CommandError(f"--max-elements {args.max_elements:g} is not finite and >= 1000")
    if args.plots is not None:
        check_writable("--plots", Path(args.plots, "scaling.png"))
    if args.passes < 1:
        raise CommandError(f"--passes {args.passes} is not >= 1")
    parts = chosen("--parts", args.parts, KINDS, ",") or list(KINDS)
    warn_if_busy()
    passes: list[list[dict[str, Any]]] = []
    for number in range(1, args.passes + 1):
        passes.append([])
        for part in parts:
            print(f"pass {number} of {args.passes}: {part} ...", file=sys.stderr, flush=True)
            options = {"max_elements": args.max_elements} if part == "step-elements" else {}
            for points in scaling.KINDS[part](device, args.seconds, **options):
                passes[-1] += map(asdict, points)
    rows = scaling.merged(passes)
    if not args.json:
        for part in parts:
            print_table(part, scaling.curves(rows, part))
    slopes = scaling.slopes(rows)
    if not args.json:
        for part, found in slopes.items():
            text = ", ".join(f"{name} {slope:.2f}" for name, slope in found.items())
            print(f"\nslopes, {part}: {text}")
    finish(args, device, rows, passes=args.passes, slopes=slopes)
    if args.plots is not None:
        kept = {"environment": environment.describe(device), "results": rows}
        with writing("--plots", Path(args.plots)):
            plots.draw_all_scaling(kept, Path(args.plots))
    return 0


def print_table(part: str, curves: dict[str, tuple[list[float], list[float]]]) -> None:
    """Milliseconds, a column a contender and a row a size."""
    print(f"\n{part}: ms\n  {'':>13}" + "".join(f"{name:>18}" for name in curves))
    cells = {name: dict(zip(*curve)) for name, curve in curves.items()}
    for x in sorted({x for found in cells.values() for x in found}):
        row = [f"{found[x]:18.3f}" if x in found else " " * 18 for found in cells.values()]
        print(f"  {x:13,}" + "".join(row))
