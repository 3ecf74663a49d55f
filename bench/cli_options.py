"""What the benchmark commands have in common: device, time, where results go."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lhkernels.cli.errors import CommandError, check_writable, writing

RESULTS = "bench/results"


def add_common(parser: argparse.ArgumentParser, seconds: float, what: str) -> None:
    """``--device``, ``--seconds``, ``--json`` and ``--save``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"{what}'s time (default: {seconds:g})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.add_argument(
        "--save",
        nargs="?",
        const=RESULTS,
        metavar="DIR",
        help=f"write DIR/<machine>/<kind>.json as well (DIR: {RESULTS})",
    )


def device_of(args: argparse.Namespace) -> Any:
    """The torch device that is asked for, if there is one; the other options are checked too."""
    device = _device_of(args)
    if not 0 < args.seconds < math.inf:
        raise CommandError(
            f"--seconds {args.seconds} is not finite and > 0; pass such as --seconds 10"
        )
    if args.save is not None:
        check_writable("--save", kept(args, device))
    return device


def kept(args: argparse.Namespace, device: Any) -> Path:
    """The file that ``--save`` writes."""
    from lhkernels import environment

    return Path(args.save) / environment.machine(device) / f"{args.kind}.json"


def _device_of(args: argparse.Namespace) -> Any:
    import torch

    if args.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(args.device)
    except RuntimeError:
        raise CommandError(f"--device {args.device} is unknown; pass auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device {args.device} has no benchmark; pass auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda, but torch finds no CUDA device; pass --device cpu")
    return device


def warn_if_busy() -> None:
    """Say on stderr that something else is running, which spoils every time."""
    from bench import timing

    busy = timing.busy_cores()
    if busy is not None and busy > 0.2:
        print(f"warning: {busy:.1f} cores are busy with something else", file=sys.stderr)


def chosen(option: str, text: str | None, known: Iterable[str], separator: str) -> list[str] | None:
    """The names in ``text``, each of ``known``; None if the option is not given."""
    if text is None:
        return None
    known = list(known)
    names = [name.strip() for name in text.split(separator)]
    for name in names:
        if name not in known:
            raise CommandError(
                f"{option} {name!r} is unknown here; choose of {f'{separator} '.join(known)}"
            )
    return names


def finish(
    args: argparse.Namespace, device: Any, results: list[dict[str, Any]], **extra: Any
) -> None:
    """Print and save the results with their environment, as asked."""
    from lhkernels import environment

    report = {"environment": environment.describe(device), **extra, "results": results}
    if args.save is not None:
        path = kept(args, device)
        with writing("--save", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=2) + "\n")
        if not args.json:
            print(f"\nwritten: {path}")
    if args.json:
        print(json.dumps(report, indent=2))
