"""Batched Hessian-vector products timed side by side: ``LocalHessian`` and the usual ways.

A round times every contender once with its one-time part (a fresh operator and its first product)
and once without (another product of the same operator). Speed-ups are taken within a round,
against the best peer's time of that round's kind, and their median is quoted. Each result is held
against a float64 product.
"""

from __future__ import annotations

import functools
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bench import memory, peers
from bench.blocks import CASES, Case
from bench.peers import Contender, Problem, contenders, is_peer
from bench.timing import wait

LEAST_ROUNDS = 3
Times = list[tuple[float, float]]  # per round: seconds with the one-time part, without


@dataclass(frozen=True)
class Result:
    """One contender on one case.

    ``ms`` is the median of a fresh operator and its first product, ``ms_product`` of a further
    product, ``ms_once`` of their difference. ``speedup`` is the median over rounds of the best
    peer's time to this one's (1 for the best peer itself), with its quartiles, and
    ``speedup_product`` the same without the one-time part. ``peak_bytes`` is what a fresh operator
    and one product allocate at most; ``error`` the relative Frobenius distance to the float64
    product. ``form`` is LocalHessian's. All are None where memory did not suffice.
    """

    case: str
    title: str
    contender: str
    form: str | None
    dim: int
    columns: int
    rounds: int
    ms: float | None = None
    ms_product: float | None = None
    ms_once: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_product: float | None = None
    speedup_product_low: float | None = None
    speedup_product_high: float | None = None
    peak_bytes: int | None = None
    error: float | None = None


def run(
    cases: Mapping[str, Case] = CASES,
    names: Sequence[str] | None = None,
    *,
    device: torch.device,
    seconds: float = 10.0,
    measure_memory: bool = True,
) -> Iterator[list[Result]]:
    """Time every case's contenders for about ``seconds``; yields a case's rows."""
    known = {**contenders(), **peers.EXTRA}
    chosen = {name: known[name] for name in names or contenders()}
    peaks: dict[str, list[int | None]] = {}
    if measure_memory and device.type == "cpu":
        for name in chosen:
            print(f"measuring the memory of {name} ...", file=sys.stderr, flush=True)
            peaks[name] = memory.cpu_peaks(name, list(cases.values()))
    for i, (key, case) in enumerate(cases.items()):
        known_peaks = {name: found[i] for name, found in peaks.items()}
        yield compare(
            key,
            case,
            chosen,
            device=device,
            seconds=seconds,
            peaks=known_peaks if peaks or not measure_memory else None,
        )


def compare(
    key: str,
    case: Case,
    chosen: Mapping[str, Contender],
    *,
    device: torch.device,
    seconds: float,
    peaks: Mapping[str, int | None] | None = None,
    reference: bool = True,
) -> list[Result]:
    """Time ``chosen`` on one case, in alternation.

    Args:
        key: the case's short name.
        case: the block.
        chosen: contenders by name.
        device: where.
        seconds: about how long; at least three rounds are timed.
        peaks: peak bytes by contender as far as they are known; None measures them (CUDA only).
        reference: whether the results are held against a float64 product.
    """
    with full_precision():
        problem = peers.problem(case, device)
        columns = case.vectors(problem.point.numel(), device)
        true = float64_product(case, columns) if reference else None
        found = dict(peaks or {})
        errors: dict[str, float | None] = {}
        forms: dict[str, str | None] = {}
        times: dict[str, Times] = {}
        for name, make in chosen.items():  # code is loaded and compiled from here on
            try:
                product = make(problem)(columns)
                errors[name] = None if true is None else distance(product, true)
                del product
                forms[name] = None if is_peer(name) else form_of(problem, name, columns)
                if peaks is None and device.type == "cuda":
                    run_once = functools.partial(_run_once, make, problem, columns)
                    found[name] = memory.cuda_peak(run_once, device)
                times[name] = []
            except torch.OutOfMemoryError:
                gc.collect()
        del true
        start = time.perf_counter()
        while time.perf_counter() - start < seconds or _rounds(times) < LEAST_ROUNDS:
            if not times:
                break
            for name in times:
                times[name].append(timed(chosen[name], problem, columns))
    rows = []
    for name in chosen:
        row = Result(
            case=key,
            title=case.title,
            contender=name,
            form=forms.get(name),
            dim=len(columns),
            columns=case.columns,
            rounds=_rounds(times),
            peak_bytes=found.get(name),
            error=errors.get(name),
            **(summary(name, times) if name in times else {}),
        )
        rows.append(row)
    return rows


def timed(make: Contender, problem: Problem, columns: Tensor) -> tuple[float, float]:
    """Seconds of a fresh operator with one product, and of one more product."""
    device = columns.device
    wait(device)
    start = time.perf_counter()
    product = make(problem)
    product(columns)
    wait(device)
    middle = time.perf_counter()
    product(columns)
    wait(device)
    return middle - start, time.perf_counter() - middle


def summary(name: str, times: Mapping[str, Times]) -> dict[str, float | None]:
    """Medians of the contender's times, and its speed-ups against the best peer."""
    both = [[1e3 * t[kind] for t in times[name]] for kind in (0, 1)]
    fields: dict[str, float | None] = {
        "ms": statistics.median(both[0]),
        "ms_product": statistics.median(both[1]),
        "ms_once": statistics.median(a - b for a, b in zip(*both)),
    }
    for kind, field in enumerate(("speedup", "speedup_product")):
        best = best_peer(times, kind)
        if best is not None:
            ratios = [1e3 * t[kind] / own for t, own in zip(times[best], both[kind])]
            low, middle, high = statistics.quantiles(ratios, n=4)
            fields |= {field: middle, f"{field}_low": low, f"{field}_high": high}
    return fields


def best_peer(times: Mapping[str, Times], kind: int) -> str | None:
    """The peer with the least median time with (0) or without (1) the one-time part."""
    peers = [name for name in times if is_peer(name)]
    return min(peers, key=lambda n: statistics.median(t[kind] for t in times[n]), default=None)


def float64_product(case: Case, columns: Tensor) -> Tensor:
    """``H V`` by double backward in float64."""
    problem = peers.problem(case, columns.device, torch.float64)
    return peers.double_backward(problem)(columns.double())


def distance(product: Tensor, true: Tensor) -> float:
    """``||product - true||_F / ||true||_F``."""
    return float((product - true).norm() / true.norm())


def form_of(problem: Problem, name: str, columns: Tensor) -> str:
    """Which of its forms LocalHessian takes here for a first product, and for a second."""
    from lhkernels.hessian import LocalHessian

    _, _, form = name.partition(", ")
    H = LocalHessian(problem.module, problem.inputs, problem.wrt, form=form or "auto")
    forms = []
    for _ in range(2):
        H @ columns
        forms.append(H.form)
    return ", then ".join(dict.fromkeys(forms))


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 as such: no TF32 in anyone's convolutions or products, so that errors compare."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def as_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Ready for JSON."""
    return [asdict(result) for result in results]


def _rounds(times: Mapping[str, Times]) -> int:
    return min(map(len, times.values()), default=0)


def _run_once(make: Any, problem: Any, columns: Tensor) -> None:
    make(problem)(columns)
