"""Optimizer steps timed side by side: ours, torch's and other peers', in alternation.

Every contender has its own parameters, gradients and momentum buffers, so that none finds another's
data in a cache. A round times one ``opt.step()`` of each (host included; the device is waited for);
ratios are taken within a round, against torch's fused SGD, and their median is quoted.
"""

from __future__ import annotations

import gc
import importlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lhkernels as lh
from bench.shapes import MODELS, Shape
from bench.timing import measure_copy, wait
from bench.traffic import bytes_per_element

BASELINE = "torch fused"
OURS = "lhkernels"
HYPERPARAMETERS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}

LARGE = 500_000_000
"""Elements above which only ours and torch's fused step are compared, on the same gradients."""

Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Result:
    """One contender on one list of parameters.

    ``ms`` is the median of a step; ``ratio`` the median over rounds of its time to torch's fused
    SGD's, ``ratio_low`` and ``ratio_high`` the quartiles; ``gb_per_s`` counts the bytes that a step
    has to move (read W, g, buf, write W, buf); ``of_copy`` is that to the measured copy's rate.
    ``bytes_per_element`` is what the step's operations do read and write for an element.
    """

    model: str
    contender: str
    dtype: str
    tensors: int
    elements: int
    rounds: int
    ms: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    gb_per_s: float
    of_copy: float
    launches: int | None
    bytes_per_element: float | None = None


def contenders(device: torch.device) -> dict[str, Factory]:
    """Factories by name: torch's fused SGD and ours first, then peers that are installed."""
    sgd = torch.optim.SGD
    found: dict[str, Factory] = {
        BASELINE: lambda ps: sgd(ps, fused=True, **HYPERPARAMETERS),
        OURS: lambda ps: lh.ScaleAmendedSGD(ps, fused=True, **HYPERPARAMETERS),
        "lhkernels, amend=False": lambda ps: lh.ScaleAmendedSGD(
            ps, fused=True, amend=False, **HYPERPARAMETERS
        ),
        "torch foreach": lambda ps: sgd(ps, foreach=True, **HYPERPARAMETERS),
        "torch loop": lambda ps: sgd(ps, foreach=False, **HYPERPARAMETERS),
        "lhkernels reference": lambda ps: lh.ScaleAmendedSGD(ps, foreach=False, **HYPERPARAMETERS),
    }
    optimi = _import("optimi")
    if optimi is not None:
        options: dict[str, Any] = {"triton": True} if device.type == "cuda" else {"foreach": True}
        found["optimi SGD"] = lambda ps: optimi.SGD(ps, **options, **HYPERPARAMETERS)
    peers = _import("pytorch_optimizer")
    if peers is not None:
        found["LARS (pytorch_optimizer)"] = lambda ps: peers.LARS(ps, **HYPERPARAMETERS)
    return found


def run(
    models: list[str],
    names: list[str] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seconds: float = 10.0,
) -> Iterator[Result]:
    """Time each model's contenders in alternation for about ``seconds``; yields model by model."""
    copy_rate = measure_copy(device)
    for model in models:
        shapes = MODELS[model]()
        yield from compare(
            model, shapes, names, device=device, dtype=dtype, seconds=seconds, copy_rate=copy_rate
        )


def compare(
    model: str,
    shapes: list[Shape],
    names: list[str] | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    copy_rate: float,
) -> list[Result]:
    """Time all contenders on one list of shapes; rows in the order of :func:`contenders`."""
    factories = contenders(device)
    elements = sum(map(math.prod, shapes))
    large = elements > LARGE
    chosen = {name: factories[name] for name in names or ([BASELINE, OURS] if large else factories)}
    grads = random_tensors(shapes, device, dtype, std=1e-3) if large else None
    optimizers = {n: prepare(make, shapes, device, dtype, grads) for n, make in chosen.items()}
    for opt in optimizers.values():  # buffers, tables and compiled kernels exist from here on
        timed(opt, device)
        timed(opt, device)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(times.values()))) < 7:
        for name, opt in optimizers.items():
            times[name].append(timed(opt, device))
    bytes_moved = 5 * elements * dtype.itemsize
    results = []
    for name, ts in times.items():
        ratios = [t / b for t, b in zip(ts, times.get(BASELINE, []))]
        low, middle, high = statistics.quantiles(ratios, n=4) if ratios else (None, None, None)
        rate = bytes_moved / statistics.median(ts) / 1e9
        results.append(
            Result(
                model=model,
                contender=name,
                dtype=str(dtype).removeprefix("torch."),
                tensors=len(shapes),
                elements=elements,
                rounds=len(ts),
                ms=1e3 * statistics.median(ts),
                ratio=middle,
                ratio_low=low,
                ratio_high=high,
                gb_per_s=rate,
                of_copy=rate / copy_rate,
                launches=count_launches(optimizers[name]) if device.type == "cuda" else None,
                bytes_per_element=bytes_per_element(optimizers[name]),
            )
        )
    del optimizers
    gc.collect()
    return results


def prepare(
    make: Factory,
    shapes: list[Shape],
    device: torch.device,
    dtype: torch.dtype,
    grads: list[Tensor] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer with parameters of its own, and gradients of its own unless they are given."""
    params = [nn.Parameter(w) for w in random_tensors(shapes, device, dtype, std=0.02)]
    for p, g in zip(params, grads or random_tensors(shapes, device, dtype, std=1e-3)):
        p.grad = g
    return make(params)


def random_tensors(
    shapes: list[Shape], device: torch.device, dtype: torch.dtype, std: float
) -> list[Tensor]:
    """Normal tensors of these shapes."""
    return [torch.empty(s, device=device, dtype=dtype).normal_(std=std) for s in shapes]


def timed(opt: torch.optim.Optimizer, device: torch.device) -> float:
    """Seconds of one step, from an idle device to an idle device."""
    wait(device)
    start = time.perf_counter()
    opt.step()
    wait(device)
    return time.perf_counter() - start


def count_launches(opt: torch.optim.Optimizer) -> int:
    """Kernels that one step launches, from a profiler's trace."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        opt.step()
        torch.cuda.synchronize()
    on_device = (e for e in trace.events() if e.device_type.name == "CUDA")
    # A trace also shows the span of the optimizer's own annotation on the device's line.
    others = ("Memcpy", "Memset", "Optimizer.")
    return sum(not e.name.startswith(others) for e in on_device)


def as_rows(results: list[Result]) -> list[dict[str, Any]]:
    """Ready for JSON."""
    return [asdict(result) for result in results]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
