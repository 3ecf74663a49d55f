"""How cost grows: steps with tensors and elements, Hessian-vector products with K and the batch.

Each point is one comparison in alternation (:mod:`step`, :mod:`hvp`), made in several passes over
all points and the median taken: a machine that stalls for seconds spoils one pass. What a power law
explains is the upper end of a curve, so slopes are fitted there.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import hvp, peers, step
from bench.blocks import Case
from bench.shapes import Shape

STEP_NAMES = (step.BASELINE, step.OURS, "torch foreach", "torch loop")
HVP_NAMES = (peers.OURS, "double backward", "jvp + vjp loop", "vmap(jvp + vjp)")

TENSORS = (1, 10, 100, 1_000, 10_000)
ELEMENTS_OF_TENSORS = 10_000_000
TENSORS_OF_ELEMENTS = 10
BLOCK = Case("conv2d", 64, 64, 32, 16, 16)
COLUMNS = (1, 2, 4, 8, 16, 32, 64)
BATCHES = (8, 16, 32, 64, 128)
# Points at the upper end that a slope is fitted to.
FITTED = {"step-tensors": 2, "step-elements": 3, "hvp-columns": 3, "hvp-batch": 3}


@dataclass(frozen=True)
class Point:
    """One contender at one size: ``ms`` is the median; ``ms_product`` only for products."""

    kind: str
    x: int
    contender: str
    ms: float
    ms_product: float | None = None


@dataclass(frozen=True)
class Fit:
    """``ms ~ x^slope`` by least squares in log-log on the points from ``start`` up."""

    slope: float
    start: float
    end: float
    scale: float  # ms at x = 1

    def at(self, x: float) -> float:
        return self.scale * x**self.slope


def step_by_tensors(
    device: torch.device, seconds: float, *, elements: int = ELEMENTS_OF_TENSORS
) -> Iterator[list[Point]]:
    """The same number of elements in 1 to 10,000 tensors."""
    for count in TENSORS:
        if 4 * count <= elements:
            yield _step("step-tensors", count, equal_tensors(elements, count), device, seconds)


def step_by_elements(
    device: torch.device, seconds: float, *, max_elements: int
) -> Iterator[list[Point]]:
    """Ten tensors, 1e3 elements and ten times more each time, as far as memory allows."""
    elements = 1_000
    while elements <= max_elements:
        names = fitting(elements, available_bytes(device))
        if not names:
            return
        shapes = equal_tensors(elements, TENSORS_OF_ELEMENTS)
        yield _step("step-elements", elements, shapes, device, seconds, names)
        elements *= 10


def hvp_by_columns(
    device: torch.device, seconds: float, *, block: Case = BLOCK, sizes: Sequence[int] = COLUMNS
) -> Iterator[list[Point]]:
    """Products with 1 to 64 vectors."""
    for k in sizes:
        yield _hvp("hvp-columns", k, replace(block, columns=k), device, seconds)


def hvp_by_batch(
    device: torch.device, seconds: float, *, block: Case = BLOCK, sizes: Sequence[int] = BATCHES
) -> Iterator[list[Point]]:
    """Products with 16 vectors for a batch of 8 to 128."""
    for n in sizes:
        yield _hvp("hvp-batch", n, replace(block, batch=n), device, seconds)


KINDS: dict[str, Callable[..., Iterator[list[Point]]]] = {
    "step-tensors": step_by_tensors,
    "step-elements": step_by_elements,
    "hvp-columns": hvp_by_columns,
    "hvp-batch": hvp_by_batch,
}


def merged(passes: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of the first pass, with the median over the passes for each time."""
    times: dict[tuple, list[dict[str, Any]]] = {}
    for row in itertools.chain(*passes):
        times.setdefault((row["kind"], row["x"], row["contender"]), []).append(row)
    return [
        {**rows[0], **{field: _median([r[field] for r in rows]) for field in ("ms", "ms_product")}}
        for rows in times.values()
    ]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def equal_tensors(elements: int, count: int) -> list[Shape]:
    """``count`` matrices of nearly the same size, ``elements`` (rounded to fours) in all."""
    rows, rest = divmod(elements // 4, count)
    return [(rows + (i < rest), 4) for i in range(count)]


def fitting(elements: int, available: int) -> list[str]:
    """The contenders that can be held at once: all, the two fused ones, or none.

    Each has parameters and momentum of its own, gradients too below :data:`step.LARGE`; half as
    much again is left for what the steps allocate.
    """
    for names in (STEP_NAMES, STEP_NAMES[:2]):
        own, shared = (2, 1) if elements > step.LARGE else (3, 0)
        spare = 1 if len(names) > 2 else 0  # a loop's temporaries
        if 4 * elements * (own * len(names) + shared + spare) < 0.9 * available:
            return list(names)
    return []


def available_bytes(device: torch.device) -> int:
    """Free memory on ``device``; without a way to know, 4 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 4 << 30
    line = next(s for s in meminfo.read_text().splitlines() if s.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def fit(xs: Sequence[float], ys: Sequence[float], points: int = 3) -> Fit | None:
    """The power law of the last ``points`` points; None with fewer than two."""
    order = sorted(zip(xs, ys))[-points:]
    if len(order) < 2:
        return None
    u = [math.log(x) for x, _ in order]
    v = [math.log(y) for _, y in order]
    mean_u, mean_v = math.fsum(u) / len(u), math.fsum(v) / len(v)
    spread = math.fsum((a - mean_u) ** 2 for a in u)
    slope = math.fsum((a - mean_u) * (b - mean_v) for a, b in zip(u, v)) / spread
    return Fit(slope, order[0][0], order[-1][0], math.exp(mean_v - slope * mean_u))


def slopes(points: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Fitted slope by kind and contender, for the rows of a JSON file."""
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        for name, (xs, ys) in curves(points, kind).items():
            law = fit(xs, ys, FITTED[kind])
            if law is not None:
                found.setdefault(kind, {})[name] = law.slope
    return found


def curves(
    points: Sequence[dict[str, Any]], kind: str, field: str = "ms"
) -> dict[str, tuple[list[float], list[float]]]:
    """(x, milliseconds) by contender."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in points:
        if row["kind"] == kind and row[field] is not None:
            xs, ys = found.setdefault(row["contender"], ([], []))
            xs.append(row["x"])
            ys.append(row[field])
    return found


def _step(
    kind: str,
    x: int,
    shapes: list[Shape],
    device: torch.device,
    seconds: float,
    names: Sequence[str] = STEP_NAMES,
) -> list[Point]:
    rows = step.compare(
        kind,
        shapes,
        list(names),
        device=device,
        dtype=torch.float32,
        seconds=seconds,
        copy_rate=math.nan,
    )
    return [Point(kind, x, row.contender, row.ms) for row in rows]


def _hvp(kind: str, x: int, case: Case, device: torch.device, seconds: float) -> list[Point]:
    chosen = {name: peers.contenders()[name] for name in HVP_NAMES}
    rows = hvp.compare(
        kind, case, chosen, device=device, seconds=seconds, peaks={}, reference=False
    )
    return [
        Point(kind, x, row.contender, row.ms, row.ms_product) for row in rows if row.ms is not None
    ]
