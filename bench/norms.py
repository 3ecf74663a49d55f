"""Time the squared norms of all parameters of a network on the CPU, each way alone.

On a GPU the step's kernel makes them itself. 'error' is the largest relative one against float64.
"""

import statistics
from argparse import Namespace
from functools import partial
from typing import Any

import torch

from bench.common import CPU, OURS, Measured, Rows, Table, shown
from bench.shapes import CPU_MODELS, MODELS
from bench.step import random_tensors
from bench.timing import timed
from lhkernels import _extension, tables
from lhkernels.step import cpp

CONTENDERS = {
    OURS: cpp.sq_norms,
    "torch._foreach_norm": lambda ws: torch.stack(torch._foreach_norm(ws)).square(),
    "torch.linalg.vector_norm": lambda ws: torch.stack(
        [torch.linalg.vector_norm(w) for w in ws]
    ).square(),
    "torch.dot": lambda ws: torch.stack([torch.dot(w.view(-1), w.view(-1)) for w in ws]),
    "square().sum()": lambda ws: torch.stack([w.square().sum() for w in ws]),
}


def measure(args: Namespace) -> Measured:
    for model in CPU_MODELS:
        weights = random_tensors(MODELS[model](), 0.02, CPU, torch.float32)
        true = torch.stack([w.double().square().sum() for w in weights])
        rows = []
        for name, norms in CONTENDERS.items():
            if name != OURS or _extension.available():
                error = float(((norms(weights).double() - true) / true).abs().max())
                ms = alone(partial(norms, weights), rounds=20, warm_up=2)
                rows.append({"case": model, "contender": name, "ms": ms, "error": error})
        yield rows


def alone(call: Any, rounds: int, warm_up: int) -> float:
    """The median of a call's milliseconds with nothing between the calls."""
    seconds = [timed(call, CPU) for _ in range(warm_up + rounds)]
    return 1e3 * statistics.median(seconds[warm_up:])


def cells(rows: Rows) -> Table:
    """A line a row: what was timed, the time, and every other figure."""
    others = [key for key in rows[0] if key not in ("case", "contender", "ms")]
    lines = [
        [r["case"], r["contender"], shown(r["ms"]), *(shown(r[k], spec=".1e") for k in others)]
        for r in rows
    ]
    ours = [i for i, r in enumerate(rows) if r["contender"].startswith(OURS)]
    return {"columns": ["", "", "ms", *others], "rows": lines, "bold": ours, "left": (0, 1)}


def markdown(results: Rows) -> str:
    """The same for pages."""
    return tables.to_markdown(**cells(results))
