"""Time H @ V for the local Gauss-Newton Hessian of a block and K vectors, in float32.

A round times every contender once with its one-time part ('fresh': a new operator and its first
product) and once without ('again': one more product); 'once' is the difference. Speed-ups beside
them are medians over rounds of the best peer's time of that kind to this one's. 'peak' is what a
fresh operator and one product allocate, 'error' the relative Frobenius distance to a float64 one.
"""

import gc
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from operator import itemgetter
from typing import Any

import torch

from bench.blocks import CASES, CONTENDERS, PEERS, Case, Contender, Problem
from bench.common import OURS, Measured, Rows, Table, add_timing, shown
from bench.timing import in_turns, quartiles, rise, wait
from lhkernels.cli import options

# glibc keeps freed memory for later, unless it is told at its start to map every larger block when
# it is allocated and to unmap it when it is freed.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


def add_options(parser: Any) -> None:
    add, known = parser.add_argument, options.names(lambda: CASES)
    add("--cases", type=known, metavar="A,B", help=f"of {', '.join(CASES)} (default: all)")
    known = options.names(lambda: CONTENDERS, ";")
    add("--contenders", type=known, metavar="A;B", help="names as in the table (default: all)")
    add("--no-memory", action="store_true", help="don't measure peak memory")
    add_timing(parser, 10.0, "a case")


def measure(args: Any) -> Measured:
    """A case's rows at a time."""
    chosen = args.contenders or [OURS, *PEERS]
    cases = {key: CASES[key] for key in args.cases or CASES}
    os.environ.update(MALLOC)
    known = {}
    for name in () if args.no_memory else chosen:
        print(f"measuring the memory of {name} ...", file=sys.stderr, flush=True)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a process of its own
            work = (peaks, name, [*cases.values()], args.device, torch.get_num_threads())
            known |= {(key, name): peak for key, peak in zip(cases, pool.submit(*work).result())}
    for key, case in cases.items():
        rows = compare(args, case, chosen)
        yield [{"case": key, **r, "peak_bytes": known.get((key, r["contender"]))} for r in rows]


def peaks(name: str, cases: list[Case], device: torch.device, threads: int) -> list[int | None]:
    """Bytes that a fresh operator and one product allocate at most: the child process's work."""
    torch.set_num_threads(threads)
    found: list[int | None] = []
    for case in cases:
        tiny = replace(case, n_in=4, n_out=4, batch=4, size=min(case.size, 4), columns=2)
        for p in (Problem(size, device) for size in (tiny, case)):  # the first loads code
            p.bare(p.inputs)  # threads and the libraries' own buffers exist
            try:
                peak = rise(lambda p=p: CONTENDERS[name](p)(p.columns), device)
            except torch.OutOfMemoryError:
                peak = None
        found.append(peak)
    return found


def compare(args: Any, case: Case, chosen: list[str]) -> Rows:
    """Time ``chosen`` on one case, in alternation; Nones for those whose memory didn't suffice."""
    # Float32 as such, no TF32 in anyone's convolutions or products, so that errors compare.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    p, exact = Problem(case, args.device), Problem(case, args.device, torch.float64)
    true = PEERS["double backward"](exact)(exact.columns)
    del exact
    about = {"title": case.title, "dim": len(p.columns), "columns": case.columns}
    found, calls = {name: {"form": None, "error": None} for name in chosen}, {}
    for name in chosen:  # code is loaded and compiled from here on
        product = None  # the last one's graph
        try:
            product, forms = CONTENDERS[name](p), []
            for _ in range(2):  # ours may take another form for the second
                error = float((product(p.columns) - true).norm() / true.norm())
                forms += [] if name in PEERS else [product.__self__.form]
        except torch.OutOfMemoryError:
            gc.collect()
            continue
        found[name] = {"form": ", then ".join(dict.fromkeys(forms)) or None, "error": error}
        calls[name] = partial(fresh_and_again, CONTENDERS[name], p)
    product = true = None
    times = in_turns(calls, args.seconds, 3)
    about["rounds"] = len(next(iter(times.values()), []))
    return [{"contender": n, **about, **found[n], **speeds(times, n)} for n in chosen]


def fresh_and_again(make: Contender, p: Problem) -> tuple[float, float]:
    """Seconds of a fresh operator with one product, and of one more product."""
    wait(p.columns.device)
    start = time.perf_counter()
    product = make(p)
    product(p.columns)
    wait(p.columns.device)
    middle = time.perf_counter()
    product(p.columns)
    wait(p.columns.device)
    return middle - start, time.perf_counter() - middle


def speeds(times: dict[str, list[tuple[float, float]]], name: str) -> dict[str, float | None]:
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
    """A case's table, a line for every contender."""
    lines = []
    for r in rows:
        name = r["contender"] + (f" ({r['form']})" if r["form"] else "")
        fresh = [shown(r["ms"]) or "out of memory", shown(r["speedup"], "x")]
        again = [shown(r["ms_product"]), shown(r["speedup_product"], "x"), shown(r["ms_once"])]
        lines.append([name, *fresh, *again, mebibytes(r), shown(r["error"], spec=".0e")])
    heads = ["", "fresh\nms", "", "again\nms", "", "once\nms", "peak\nMiB", "error"]
    title = "{case}: {title}, dim {dim}, {rounds} rounds".format(**rows[0])
    ours = [i for i, r in enumerate(rows) if r["contender"] == OURS]
    return {"columns": heads, "rows": lines, "title": title, "bold": ours}


def mebibytes(row: dict[str, Any]) -> str:
    """Nothing where nobody counted."""
    return shown(row["peak_bytes"] and row["peak_bytes"] / 2**20)


def every_block(results: Rows) -> list[Table]:
    """A table a block, a line for every contender."""
    return [cells([*rows]) for _, rows in groupby(results, itemgetter("title"))]


def best_peers(results: Rows) -> Table:
    """A line a block: ours and the best peer, with and without the one-time part."""
    heads = ["H V, float32", "best peer, ms", "lhkernels, fresh, ms", "again, ms"]
    heads += ["peak memory, MiB (least of the peers)", "error (best peer's)"]
    lines = []
    for title, rows in groupby((r for r in results if r["ms"]), itemgetter("title")):
        done = {row["contender"]: row for row in rows}
        peers = [row for name, row in done.items() if not name.startswith(OURS)]
        if OURS in done and peers:
            ours, best = done[OURS], min(peers, key=itemgetter("ms"))
            counted = [row for row in peers if row["peak_bytes"] is not None]
            least = min(counted, key=itemgetter("peak_bytes"), default=best)
            fresh = f"{shown(ours['ms'])}, **{shown(ours['speedup'], 'x')}**"
            again = f"{shown(ours['ms_product'])}, **{shown(ours['speedup_product'], 'x')}**"
            peak = mebibytes(ours) + (f" ({mebibytes(least)})" if counted else "")
            error = f"{ours['error']:.0e} ({best['error']:.0e})"
            peer = f"{shown(best['ms'])} ({best['contender']})"
            lines.append([f"{title} ({ours['form']})", peer, fresh, again, peak, error])
    return {"columns": heads, "rows": lines}
