"""``python -m lhkernels bench hvp``: batched Hessian-vector products beside the usual ways."""

from __future__ import annotations

import argparse
from typing import Any

from bench.blocks import CASES
from bench.cli_options import add_common, chosen, device_of, finish, warn_if_busy


def add_kind(kinds: Any) -> None:
    """Register the benchmark."""
    parser = kinds.add_parser(
        "hvp",
        help="products of a block's local Hessian with K vectors",
        description="Time H @ V for the local Gauss-Newton Hessian of a block and K vectors, in "
        "float32. 'fresh' is a new operator and its first product, 'again' one more product of "
        "it, 'once' their difference, each in ms; the speed-up beside them is the median over "
        "rounds of the best peer's time to this one's. 'peak' is what a fresh operator and one "
        "product allocate at most, 'error' the relative distance to a float64 product.",
    )
    cases = ", ".join(CASES)
    parser.add_argument("--cases", metavar="A,B", help=f"of {cases} (default: all)")
    parser.add_argument("--contenders", metavar="A;B", help="names as in the table (default: all)")
    parser.add_argument("--no-memory", action="store_true", help="don't measure peak memory")
    add_common(parser, 10.0, "a case")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Time, and print a table or JSON."""
    from bench import hvp, peers

    device = device_of(args)
    keys = chosen("--cases", args.cases, CASES, ",") or list(CASES)
    known = {**peers.contenders(), **peers.EXTRA}
    names = chosen("--contenders", args.contenders, known, ";")
    warn_if_busy()
    results = []
    for rows in hvp.run(
        {key: CASES[key] for key in keys},
        names,
        device=device,
        seconds=args.seconds,
        measure_memory=not args.no_memory,
    ):
        results += rows
        if not args.json:
            print_case(rows)
    finish(args, device, hvp.as_rows(results))
    return 0


def print_case(rows: list[Any]) -> None:
    """A case's table."""
    first = rows[0]
    print(f"\n{first.case}: {first.title}, dim {first.dim}, {first.rounds} rounds")
    print(
        f"  {'':24}{'fresh':>8}{'':8}{'again':>8}{'':8}{'once':>7}{'peak MiB':>9}{'error':>6}",
        flush=True,
    )
    for row in rows:
        name = row.contender
        if row.form is not None:
            name += f" ({row.form.removeprefix('factored, ')})" if "," not in name else ""
        if row.ms is None:
            print(f"  {name:24}{'out of memory':>16}")
            continue
        peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}"
        print(
            f"  {name:24}{row.ms:8.{2 if row.ms < 1e4 else 0}f}{times(row.speedup):8}"
            f"{row.ms_product:8.{2 if row.ms_product < 1e4 else 0}f}{times(row.speedup_product):8}"
            f"{row.ms_once:7.{1 if abs(row.ms_once) < 1e3 else 0}f}{peak:>9}{row.error:6.0e}",
            flush=True,
        )


def times(ratio: float | None) -> str:
    """Such as `` 5.2x``."""
    return "" if ratio is None else f" {ratio:.3g}x" if ratio < 999.5 else f" {ratio:.0f}x"
