"""Step times of peers that only a GPU has: compiled, apex's and bitsandbytes' SGD.

In alternation with torch's fused SGD and ours, as ``python -m lhkernels bench step`` does it.
"""

from __future__ import annotations

import gc
import importlib
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.shapes import MODELS
from bench.timing import measure_copy
from gpu_parts.drivers.common import FUSED, OPTIMIZERS, OPTIONS, OURS, Job, parameters

Step = Callable[[], Any]


def compiled(params: list[nn.Parameter], backend: str) -> Step:
    """torch's foreach step through ``torch.compile``; lr is a tensor, so that it may change."""
    lr = torch.tensor(OPTIONS["lr"], device=params[0].device)
    opt = torch.optim.SGD(params, foreach=True, **{**OPTIONS, "lr": lr})
    return torch.compile(opt.step, backend=backend)


def contenders(job: Job) -> tuple[dict[str, Callable[[list[nn.Parameter]], Step]], dict[str, str]]:
    """Steps by name, and why others are missing."""
    backend = "eager" if job.dry else "inductor"
    found: dict[str, Callable[[list[nn.Parameter]], Step]] = {
        FUSED: lambda ps: OPTIMIZERS[FUSED](ps).step,
        OURS: lambda ps: OPTIMIZERS[OURS](ps).step,
        "torch compiled": lambda ps: compiled(ps, backend),
    }
    missing = {}
    for name, module, attribute in (
        ("apex FusedSGD", "apex.optimizers", "FusedSGD"),
        ("bitsandbytes SGD", "bitsandbytes.optim", "SGD32bit"),
    ):
        try:
            make = getattr(importlib.import_module(module), attribute)
        except (ImportError, OSError, AttributeError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
            continue
        found[name] = lambda ps, make=make: make(ps, **OPTIONS).step
    return found, missing


def compare(
    job: Job, model: str, dtype: torch.dtype, copy_rate: float, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of one model, and which contenders failed."""
    shapes = [(8, 4), (5,)] if job.dry else MODELS[model]()
    makers, missing = contenders(job)
    steps: dict[str, Step] = {}
    for name, make in makers.items():
        try:
            step = make(parameters(shapes, job.device, dtype))
            for _ in range(4):  # compiled twice: without momentum buffers, and with them
                job.ms(step)
        except Exception as error:  # a peer that fails is left out, and named
            missing[f"{name}, {model}"] = f"{type(error).__name__}: {error}"[:200]
            continue
        steps[name] = step
    times: dict[str, list[float]] = {name: [] for name in steps}
    while sum(map(sum, times.values())) < 1e3 * seconds or len(next(iter(times.values()))) < 7:
        for name, step in steps.items():
            times[name].append(job.ms(step))
    elements = sum(map(math.prod, shapes))
    rows = []
    for name, ts in times.items():
        rate = 5 * elements * dtype.itemsize / statistics.median(ts) / 1e6
        ratio = statistics.median(t / b for t, b in zip(ts, times[FUSED]))
        rows.append(
            {"model": model, "contender": name, "dtype": str(dtype).removeprefix("torch.")}
            | {"tensors": len(shapes), "elements": elements, "rounds": len(ts)}
            | {"ms": statistics.median(ts), "ratio": ratio}
            | {"gb_per_s": rate, "of_copy": rate / copy_rate}
        )
    return rows, missing


def main() -> None:
    job = Job(__doc__, ("--seconds", {"type": float, "default": 4.0}))
    seconds = 0.01 if job.dry else job.args.seconds
    copy_rate = measure_copy(job.device, mib=1 if job.dry else 1024)
    models = {"vgg13": torch.float32, "resnet50": torch.float32, "gpt2-small": torch.float32}
    if not job.dry:
        models["transformer-1b"] = torch.bfloat16
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for model, dtype in models.items():
        torch._dynamo.reset()
        more, failed = compare(job, model, dtype, copy_rate, seconds)
        rows += more
        missing |= failed
        job.save(copy_gb_per_s=copy_rate, results=rows, missing=missing)
        gc.collect()


if __name__ == "__main__":
    main()
