"""The command line, ``python -m lhkernels COMMAND``: one module a command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lhkernels import __version__
from lhkernels.cli import asm, bench, info, spectrum, train
from lhkernels.cli.errors import CommandError, is_too_large

COMMANDS = (info, train, spectrum, bench, asm)


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command registered."""
    parser = argparse.ArgumentParser(
        prog="lhkernels", description="Scale-amended SGD and the local Hessian of back-propagation."
    )
    parser.add_argument("--version", action="version", version=f"lhkernels {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 where the user can mend what is wrong."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except CommandError as error:
        print(f"lhkernels {args.command}: error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        if not is_too_large(error):
            raise
        reason = str(error).strip().splitlines()[:1] or ["out of memory"]
        print(f"lhkernels {args.command}: error: too large: {reason[0]}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
