"""``python -m lhkernels bench step``: optimizer steps beside torch's and other peers'."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bench.cli_options import add_common, chosen, device_of, finish, warn_if_busy
from bench.shapes import CPU_MODELS, LARGE_MODELS, MODELS
from lhkernels.cli.errors import CommandError


def add_kind(kinds: Any) -> None:
    """Register the benchmark."""
    step = kinds.add_parser(
        "step",
        help="opt.step() on the parameter shapes of real networks",
        description="Time opt.step(), host included, on the parameter shapes of real networks. "
        "'ratio' is the median over rounds of the time to torch.optim.SGD(fused=True); 'GB/s' "
        "counts the floor of 5 accesses an element (20 bytes in float32); '/copy' is that to a "
        "measured dst.copy_(src).",
    )
    names = ", ".join(MODELS)
    step.add_argument("--models", metavar="A,B", help=f"of {names} (default: those that fit)")
    step.add_argument("--contenders", metavar="A;B", help="names as in the table (default: all)")
    add_common(step, 10.0, "a model")
    step.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Time, and print a table or JSON."""
    import torch

    from bench import step
    from lhkernels.step import fused_backend

    device = device_of(args)
    backend, reason = fused_backend(device.type, torch.float32)
    if backend is None:
        raise CommandError(f"there is no fused step to time on {device.type}: {reason}")
    default = CPU_MODELS + (LARGE_MODELS if device.type == "cuda" else ())
    models = chosen("--models", args.models, MODELS, ",") or list(default)
    known = step.contenders(device)
    names = chosen("--contenders", args.contenders, known, ";")
    warn_if_busy()
    results = []
    for model in models:
        dtype = torch.bfloat16 if model in LARGE_MODELS else torch.float32
        for result in step.run([model], names, device=device, dtype=dtype, seconds=args.seconds):
            results.append(result)
            if not args.json:
                print_row(result, first=result.contender == (names or list(known))[0])
        sys.stdout.flush()
    finish(args, device, step.as_rows(results))
    return 0


def print_row(result: Any, *, first: bool) -> None:
    """A row of the table, under the model's heading if it is the first."""
    if first:
        size = f"{result.elements / 1e6:.1f} M in {result.tensors} tensors, {result.dtype}"
        print(f"\n{result.model}: {size}, {result.rounds} rounds")
        print(f"  {'':24}{'ms':>8}{'ratio':>7}  {'quartiles':12}{'GB/s':>8}{'/copy':>6}  launches")
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    quartiles = "" if result.ratio is None else f"{result.ratio_low:.2f} - {result.ratio_high:.2f}"
    launches = "-" if result.launches is None else str(result.launches)
    print(
        f"  {result.contender:24}{result.ms:8.2f}{ratio:>7}  {quartiles:12}"
        f"{result.gb_per_s:8.1f}{result.of_copy:6.2f}  {launches:>8}"
    )
