"""Time H @ V for the local Gauss-Newton Hessian of a block and K vectors, in float32.

A round times every contender once with its one-time part ('fresh': a new operator and its first
product) and once without ('again': one more product of it); 'once' is the difference. The speed-up
beside them is the median over rounds of the best peer's time of that kind to this one's. 'peak' is
what a fresh operator and one product allocate at most, 'error' the relative Frobenius distance to a
float64 product.
"""

import gc
import statistics
import sys
from argparse import Namespace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch

from bench.blocks import CASES, CONTENDERS, PEERS, Case, Contender, Problem
from bench.common import OURS, Measured, Rows, Table, add_timing, shown
from bench.memory import peaks
from bench.timing import in_turns, quartiles, timed
from lhkernels import tables
from lhkernels.cli import options


def add_options(parser: Any) -> None:
    add, known = parser.add_argument, options.names(lambda: CASES)
    add("--cases", type=known, metavar="A,B", help=f"of {', '.join(CASES)} (default: all)")
    known = options.names(lambda: CONTENDERS, ";")
    add("--contenders", type=known, metavar="A;B", help="names as in the table (default: all)")
    add("--no-memory", action="store_true", help="don't measure peak memory")
    add_timing(parser, 10.0, "a case")


def measure(args: Namespace) -> Measured:
    chosen = args.contenders or [OURS, *PEERS]
    cases = {key: CASES[key] for key in args.cases or CASES}
    known = {}
    for name in () if args.no_memory else chosen:
        print(f"measuring the memory of {name} ...", file=sys.stderr, flush=True)
        for key, peak in zip(cases, peaks(name, list(cases.values()), args.device)):
            known[key, name] = peak
    for key, case in cases.items():
        rows = compare(args, case, chosen)
        yield [{"case": key, **r, "peak_bytes": known.get((key, r["contender"]))} for r in rows]


def compare(args: Namespace, case: Case, chosen: list[str]) -> Rows:
    """Time ``chosen`` on one case, in alternation; Nones for those whose memory didn't suffice."""
    # Float32 as such, no TF32 in anyone's convolutions or products, so that errors compare.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    p, exact = Problem(case, args.device), Problem(case, args.device, torch.float64)
    true = PEERS["double backward"](exact)(exact.columns)
    del exact
    found, calls = {}, {}
    for name in chosen:  # code is loaded and compiled from here on
        try:
            product, forms = CONTENDERS[name](p), []
            for _ in range(2):  # ours may take another form for the second
                error = float((product(p.columns) - true).norm() / true.norm())
                forms += [product.__self__.form] if name not in PEERS else []
        except torch.OutOfMemoryError:
            gc.collect()
            continue
        form = ", then ".join(dict.fromkeys(forms)) or None
        found[name] = {"form": form, "error": error}
        calls[name] = partial(fresh_and_again, CONTENDERS[name], p)
    del true, product
    times = in_turns(calls, args.seconds, 3)
    about = {"title": case.title, "dim": len(p.columns), "columns": case.columns}
    about |= {"rounds": len(next(iter(times.values()), [])), "form": None, "error": None}
    return [
        {"contender": name, **about, **found.get(name, {}), **medians(times, name)}
        for name in chosen
    ]


def fresh_and_again(make: Contender, p: Problem) -> tuple[float, float]:
    """Seconds of a fresh operator with one product, and of one more product."""
    made = []

    def fresh() -> None:
        made.append(make(p))
        made[0](p.columns)

    return timed(fresh, p.columns.device), timed(lambda: made[0](p.columns), p.columns.device)


def medians(times: dict[str, list[tuple[float, float]]], name: str) -> dict[str, float | None]:
    """Medians of a contender's times, and its speed-ups against the best peer of each kind."""
    own = times.get(name, [])
    kinds = {"ms": [fresh for fresh, _ in own], "ms_product": [again for _, again in own]}
    kinds["ms_once"] = [fresh - again for fresh, again in own]
    row = {field: 1e3 * statistics.median(ts) if ts else None for field, ts in kinds.items()}
    for kind, field in enumerate(("speedup", "speedup_product")):
        peers = [[t[kind] for t in times[peer]] for peer in times if peer in PEERS]
        best = min(peers, key=statistics.median, default=[])
        row |= quartiles(field, [b / t[kind] for b, t in zip(best, own)])
    return row


def cells(rows: Rows) -> Table:
    lines = []
    for r in rows:
        name = r["contender"] + (f" ({r['form']})" if r["form"] else "")
        fresh = [shown(r["ms"]) or "out of memory", shown(r["speedup"], "x")]
        again = [shown(r["ms_product"]), shown(r["speedup_product"], "x"), shown(r["ms_once"])]
        rest = [mebibytes(r["peak_bytes"]), shown(r["error"], spec=".0e")]
        lines.append([name, *fresh, *again, *rest])
    heads = ["", "fresh\nms", "", "again\nms", "", "once\nms", "peak\nMiB", "error"]
    title = "{case}: {title}, dim {dim}, {rounds} rounds".format(**rows[0])
    ours = [i for i, r in enumerate(rows) if r["contender"] == OURS]
    return {"columns": heads, "rows": lines, "title": title, "bold": ours}


def mebibytes(size: int | None) -> str:
    """Nothing where nobody counted."""
    return shown(size and size / 2**20)


def every_block(results: Rows) -> str:
    """A table a block, a line for every contender."""
    blocks = [list(rows) for _, rows in groupby(results, key=itemgetter("title"))]
    return "\n\n".join(tables.to_markdown(**cells(rows)) for rows in blocks)


def best_peers(results: Rows) -> str:
    """A line a block: ours and the best peer, with and without the one-time part."""
    heads = ["H V, float32", "best peer, ms", "lhkernels, fresh, ms", "again, ms"]
    heads += ["peak memory, MiB (least of the peers)", "error (best peer's)"]
    lines = []
    for title, rows in groupby(results, key=itemgetter("title")):
        done = {row["contender"]: row for row in rows if row["ms"] is not None}
        peers = [row for name, row in done.items() if not name.startswith(OURS)]
        if OURS not in done or not peers:
            continue
        ours, best = done[OURS], min(peers, key=itemgetter("ms"))
        least = min((row["peak_bytes"] for row in peers if row["peak_bytes"]), default=None)
        lines.append([
            f"{title} ({ours['form']})",
            f"{shown(best['ms'])} ({best['contender']})",
            f"{shown(ours['ms'])}, **{shown(ours['speedup'], 'x')}**",
            f"{shown(ours['ms_product'])}, **{shown(ours['speedup_product'], 'x')}**",
            mebibytes(ours["peak_bytes"]) + (f" ({mebibytes(least)})" if least else ""),
            f"{ours['error']:.0e} ({best['error']:.0e})",
        ])  # fmt: skip
    return tables.to_markdown(heads, lines)
