"""``python -m lhkernels bench KIND``: ours beside torch's and other peers'."""

from __future__ import annotations

from typing import Any

from lhkernels.cli import bench_hvp, bench_report, bench_scaling, bench_step


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="time steps and Hessian-vector products against torch's and other peers'",
        description="Benchmarks; each times its baseline in the same run, in alternation.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for module in (bench_step, bench_hvp, bench_scaling, bench_report):
        module.add_kind(kinds)
