"""``python -m lhkernels bench KIND``: the door to ``bench/`` beside the package."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import lhkernels
from lhkernels.cli.errors import CommandError


def add_parser(subparsers: Any) -> None:
    """Register the command, with the kinds of the checkout if there is one."""
    root = Path(lhkernels.__file__).resolve().parents[1]
    # An installation's neighbours are other packages, one named bench perhaps.
    checkout = all((root / name).is_file() for name in ("pyproject.toml", "bench/__init__.py"))
    parser = subparsers.add_parser(
        "bench",
        help="time steps and Hessian-vector products against torch's and other peers'",
        description="Benchmarks; each times its baseline in the same run, in alternation. "
        "They run from a checkout of the repository.",
    )
    if not checkout:
        parser.add_argument("kind", nargs=argparse.REMAINDER, metavar="KIND ...")
        parser.set_defaults(run=refuse)
        return
    if sys.path[0] != str(root):  # before a folder of that name where the user is
        sys.path.insert(0, str(root))
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    import_module("bench.common").add_kinds(kinds)


def refuse(args: argparse.Namespace) -> int:
    """Say where benchmarks run."""
    raise CommandError(
        f"benchmarks run from a checkout of the repository, and the lhkernels of "
        f"{Path(lhkernels.__file__).parent} is installed without one; clone the repository and run "
        "`make install`, then `.venv/bin/python -m lhkernels bench` there"
    )
