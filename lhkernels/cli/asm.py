"""``lhkernels asm``: the step kernel's registers, spills and memory accesses, without a GPU."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from lhkernels import asm
from lhkernels.cli.errors import CommandError
from lhkernels.tables import table, to_text

HEADS = [
    *("kernel", "weight", "grad", "mom.", "regs", "spill", "smem"),
    *("loads\n128b", "less", "stores\n128b", "less", "SASS\n128b", "warps", "KiB"),
]
NOTES = """
loads, stores  of one thread in one full tile, by the width of the access (PTX)
SASS           128-bit loads + stores in the machine code
warps, KiB     warps that fit an SM, and what they request before they wait
spill          bytes written to or read from memory for want of registers
smem           bytes of shared memory
step, sr       with stochastic rounding"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "asm",
        help="cross-compile the GPU step kernel and report what became of it",
        description="Cross-compile the Triton step kernel (with momentum, weight decay and norms) "
        "and report registers, spilled bytes, shared memory and its memory accesses by width. No "
        "GPU is needed.",
    )
    parser.add_argument(
        "--arch", type=int, default=90, choices=sorted(asm.ARCHS), help="sm_ARCH (default: 90)"
    )
    parser.add_argument(
        "--dtype", choices=list(asm.DTYPES), help="of the parameters (default: each in turn)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--ptx", action="store_true", help="print the PTX")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile and print."""
    dtypes = [args.dtype] if args.dtype else list(asm.DTYPES)
    try:
        reports = asm.cross_compile(asm.variants(dtypes), args.arch)
    except asm.CompileError as error:
        raise CommandError(str(error)) from error
    if args.json:
        print(json.dumps([report.to_json() for report in reports], indent=2))
    elif args.ptx:
        for report in reports:
            print(f"// {report.variant}\n{report.ptx}")
    else:
        print(text(reports))
    return 0


def text(reports: Sequence[asm.Report]) -> str:
    """A row per kernel, at most 80 columns wide."""
    arch, threads = reports[0].arch, reports[0].threads
    title = f"sm_{arch} ({asm.ARCHS[arch]}): {threads} threads to a tile of {asm.TILE} elements"
    heads = [head if "\n" in head else f"\n{head}" for head in HEADS]
    return to_text(title, "", table(heads, map(_row, reports), left=range(4), gap=1), NOTES)


def _row(report: asm.Report) -> list[object]:
    v, sass = report.variant, report.sass
    return [
        v.kernel + (", sr" if v.stochastic else ""),
        *(asm.DTYPES[d] if d else "" for d in (v.param, v.grad, v.momentum)),
        *(report.registers, report.spill_bytes, report.shared_bytes),
        *(*_by_width(report.loads), *_by_width(report.stores)),
        f"{sass.get('LDG.128', 0)}+{sass.get('STG.128', 0)}",
        *(report.resident_warps, report.bytes_in_flight >> 10),
    ]


def _by_width(accesses: dict[int, int]) -> tuple[int, int]:
    """The number of 128-bit accesses, and of narrower ones."""
    wide = accesses.get(128, 0)
    return wide, sum(accesses.values()) - wide
