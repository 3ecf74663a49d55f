"""Benchmarks, run from a checkout: ``python -m lhkernels bench KIND``."""

from __future__ import annotations

from typing import Any


def add_kinds(kinds: Any) -> None:
    """Register every kind as a command of its own; ``lhkernels/cli/bench.py`` calls this."""
    from bench import cli_hvp, cli_report, cli_scaling, cli_step

    for module in (cli_step, cli_hvp, cli_scaling, cli_report):
        module.add_kind(kinds)
