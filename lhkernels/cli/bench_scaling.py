"""``python -m lhkernels bench scaling``: how cost grows with size."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lhkernels.cli.bench_options import add_common, chosen, device_of, finish, warn_if_busy
from lhkernels.cli.errors import CommandError

KINDS = ("hvp-columns", "hvp-batch", "step-tensors", "step-elements")  # the largest last


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
    add_common(parser, 1.0, "a point")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Time, and print tables or JSON."""
    from lhkernels.benchmarks import environment, plots, scaling

    device = device_of(args)
    if not args.max_elements >= 1000:
        raise CommandError(f"--max-elements {args.max_elements:g} is not >= 1000")
    parts = chosen("--parts", args.parts, KINDS, ",") or list(KINDS)
    warn_if_busy()
    rows: list[dict[str, Any]] = []
    for part in parts:
        options = {"max_elements": args.max_elements} if part == "step-elements" else {}
        first = True
        for points in scaling.KINDS[part](device, args.seconds, **options):
            rows += map(asdict, points)
            if not args.json:
                print_points(part, points, first=first)
            first = False
    slopes = scaling.slopes(rows)
    if not args.json:
        for part, found in slopes.items():
            text = ", ".join(f"{name} {slope:.2f}" for name, slope in found.items())
            print(f"\nslopes, {part}: {text}")
    finish(args, device, rows, slopes=slopes)
    if args.plots is not None:
        kept = {"environment": environment.describe(device), "results": rows}
        plots.draw_all_scaling(kept, Path(args.plots))
    return 0


def print_points(part: str, points: list[Any], *, first: bool) -> None:
    """One size's row: milliseconds by contender."""
    if first:
        names = "".join(f"{point.contender:>18}" for point in points)
        print(f"\n{part}: ms\n  {'':>13}{names}")
    print(f"  {points[0].x:13,}" + "".join(f"{p.ms:18.3f}" for p in points), flush=True)
