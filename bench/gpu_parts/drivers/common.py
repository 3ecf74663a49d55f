"""What the drivers share: arguments, writing, waiting, and the optimizers to be compared."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lhkernels as lh

OPTIONS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
OURS, FUSED, FOREACH = "lhkernels", "torch fused", "torch foreach"
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    OURS: lambda ps: lh.ScaleAmendedSGD(ps, fused=True, **OPTIONS),
    FUSED: lambda ps: torch.optim.SGD(ps, fused=True, **OPTIONS),
    FOREACH: lambda ps: torch.optim.SGD(ps, foreach=True, **OPTIONS),
}


class Job:
    """A driver's arguments and results; :meth:`save` after each result keeps it."""

    def __init__(self, description: str | None, *extra: tuple[str, dict[str, Any]]) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--json", type=Path, required=True, help="where the results go")
        parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
        for flag, options in extra:
            parser.add_argument(flag, **options)
        self.args = parser.parse_args()
        self.dry: bool = self.args.dry_run
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.results: dict[str, Any] = {}
        torch.manual_seed(0)

    def save(self, **results: Any) -> None:
        """Add to the results, and write them."""
        self.results |= results
        draft = self.args.json.with_suffix(".tmp")  # whole, whenever this process is ended
        draft.write_text(json.dumps(self.results, indent=2) + "\n")
        draft.replace(self.args.json)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def ms(self, call: Callable[[], Any]) -> float:
        """Milliseconds of a call, from an idle device to an idle device."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return 1e3 * (time.perf_counter() - start)

    def median_ms(self, call: Callable[[], Any], rounds: int) -> float:
        return statistics.median(self.ms(call) for _ in range(rounds))


def parameters(
    shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    """Parameters with gradients, both random."""
    made = []
    for shape in shapes:
        p = nn.Parameter(torch.empty(shape, device=device, dtype=dtype).normal_(std=0.02))
        p.grad = torch.empty_like(p).normal_(std=1e-3)
        made.append(p)
    return made


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Over all tensors, |a - b| at most, relative to the largest |b| of the tensor."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = x.detach().double(), y.detach().double()
        size = y.abs().max().clamp_min(1e-30)
        difference = ((x - y).abs().max() / size).item()
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst
