"""``python -m lhkernels info``: versions, and which backends can run here and why others can't."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lhkernels.environment import collect


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "info",
        help="versions, available backends and why others are not",
        description="Print versions, devices, and for each backend whether it can run here.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what :func:`collect` finds."""
    found = collect()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    for title, rows in found.items():
        print(title)
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"  {name.ljust(width)}  {value}")
    return 0
