"""What the kinds have in common: where, how long, and where tables and results go."""

import json
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench.timing import busy_cores
from lhkernels import environment, tables
from lhkernels.cli import options
from lhkernels.cli.errors import check_writable, writing

OURS = "lhkernels"
RESULTS = "bench/results"
CPU = torch.device("cpu")
Rows = list[dict[str, Any]]
Measured = Iterator[Rows]
Table = dict[str, Any]  # what lhkernels.tables takes


def add_kinds(kinds: Any) -> None:
    """Register every kind as a command of its own; ``lhkernels/cli/bench.py`` calls this.

    A kind is a module: its docstring describes it, it can ``measure`` rows, those of a table at a
    time, and lay out their ``cells``; perhaps ``add_options``, and make a ``summary``.
    """
    from bench import hvp, report, scaling, step, suite

    for module in (step, hvp, scaling, suite, report):
        kind, brief = module.__name__.rpartition(".")[2], module.__doc__.partition(".\n")[0]
        about = {"description": module.__doc__, "formatter_class": RawDescriptionHelpFormatter}
        parser = kinds.add_parser(kind, help=brief, **about)
        parser.set_defaults(run=partial(execute, module), device=CPU, plots=None)
        parser.add_argument("--json", action="store_true", help="print JSON on stdout")
        if hasattr(module, "add_options"):
            module.add_options(parser)
        if module is not report:
            where = f"write DIR/<machine>/{kind}.json as well (DIR: {RESULTS})"
            parser.add_argument("--save", nargs="?", const=RESULTS, metavar="DIR", help=where)


def add_timing(parser: Any, seconds: float, what: str) -> None:
    """``--device`` and ``--seconds``."""
    add, long = parser.add_argument, f"{what}'s time (default: {seconds:g})"
    add("--device", type=options.device, default="auto", help="auto, cpu, cuda (default: auto)")
    add("--seconds", type=options.positive, default=seconds, help=long)


def execute(kind: ModuleType, args: Any) -> int:
    """Print each table as soon as its rows are measured; keep all, and draw how cost grows."""
    if args.plots is not None:
        check_writable("--plots", args.plots / "scaling.png")
    path = Path(args.save or "", environment.machine(args.device), f"{args.kind}.json")
    if args.save is not None:
        check_writable("--save", path)
    if (busy := busy_cores()) > 0.2:
        print(f"warning: {busy:.1f} cores are busy with something else", file=sys.stderr)
    results: Rows = []
    for rows in kind.measure(args):
        results += rows
        if not args.json:
            tables.show("", tables.table(**kind.cells(rows)))
    more = kind.summary(args, results) if hasattr(kind, "summary") else {}
    report = {"environment": environment.describe(args.device), **more, "results": results}
    text = json.dumps(report, indent=2)
    if args.save is not None:
        with writing("--save", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
    if args.json:
        print(text)
    elif args.save is not None:
        print(f"\nwritten: {path}")
    if args.plots is not None:
        from bench.report import draw_scaling

        with writing("--plots", args.plots):
            draw_scaling(report, args.plots)
    return 0


def shown(value: float | None, unit: str = "", spec: str = "") -> str:
    """Three digits, or all before the point, if ``spec`` doesn't say otherwise; "" for None."""
    spec = spec or (".0f" if abs(value or 0) >= 100 else ".3g")
    return "" if value is None else f"{value:{spec}}{unit}"
