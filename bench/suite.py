"""Time squared norms and spectra on the CPU, each way alone.

The norms are those of all parameters of a network (on a GPU the step's kernel makes them itself),
the spectrum that of a block's local Hessian. Errors are relative, against float64: the largest of
all norms, that of the largest eigenvalue, and 'W1', the mean distance of the quantiles
(Wasserstein-1) relative to it; ARPACK (scipy.sparse.linalg.eigsh) finds the largest alone.
"""

import statistics
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch.linalg import vector_norm

from bench.blocks import PEERS, Case, Problem
from bench.common import CPU, OURS, Measured, Rows, Table, shown
from bench.step import CPU_MODELS, MODELS, random_tensors
from bench.timing import timed
from lhkernels import _extension
from lhkernels.hessian import LocalHessian, spectrum
from lhkernels.step import cpp

BLOCKS = {
    "conv": Case("conv2d", 16, 8, 32, 8, 1),  # dim 1152
    "linear": Case("linear", 384, 256, 2048, 0, 1, batch_norm=False),  # dim 98304
}


def measure(args: Any) -> Measured:
    """The rows of a network, then of a block, at a time."""
    from scipy.stats import wasserstein_distance

    for model in CPU_MODELS:
        weights = random_tensors(MODELS[model], 0.02, CPU, torch.float32)
        true = torch.stack([w.double().square().sum() for w in weights])
        about, rows = {"group": "norms", "case": model}, []
        for name, norms in NORMS.items():
            if name != OURS or _extension.available():
                ms = alone(partial(norms, weights), rounds=20, warm_up=2)
                error = float(((norms(weights).double() - true) / true).abs().max())
                rows.append({**about, "contender": name, "ms": ms, "error": error})
        yield rows
    for key, case in BLOCKS.items():
        p, exact = Problem(case), Problem(case, dtype=torch.float64)
        dense = LocalHessian(exact.module, exact.inputs, form="autograd").dense
        true = torch.linalg.eigvalsh(dense() if key == "conv" else exact.inputs.T @ exact.inputs)
        about, rows = {"group": "spectrum", "case": case.title.rpartition(", K")[0]}, []
        for name, find in spectra(p, key).items():
            values, weights = find()
            known, top = weights is not None, float(true[-1])
            W1 = wasserstein_distance(values, true, weights) / top if known else None
            largest = abs(float(values.max()) - top) / top
            ms = alone(find, rounds=3, warm_up=1)
            rows.append({**about, "contender": name, "ms": ms, "W1": W1, "largest": largest})
        yield rows


def alone(call: Callable[[], object], rounds: int, warm_up: int) -> float:
    """The median of a call's milliseconds, nothing between the calls."""
    return 1e3 * statistics.median([timed(call, CPU) for _ in range(warm_up + rounds)][warm_up:])


NORMS: dict[str, Callable] = {
    OURS: cpp.sq_norms,
    "torch._foreach_norm": lambda ws: torch.stack(torch._foreach_norm(ws)).square(),
    "torch.linalg.vector_norm": lambda ws: torch.stack([*map(vector_norm, ws)]).square(),
    "torch.dot": lambda ws: torch.stack([torch.dot(w.view(-1), w.view(-1)) for w in ws]),
    "square().sum()": lambda ws: torch.stack([w.square().sum() for w in ws]),
}


def spectra(p: Problem, key: str) -> dict[str, Callable[[], tuple]]:
    """Eigenvalues and weights by name, weights None where only the largest is found."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    n, H = p.point.numel(), partial(LocalHessian, p.module, p.inputs)
    both = attrgetter("eigenvalues", "weights")

    def eigvalsh(matrix: torch.Tensor) -> tuple:
        values = torch.linalg.eigvalsh(matrix)
        return values, torch.full_like(values, 1 / len(values))

    def arpack(operator: Any) -> tuple:
        values = eigsh(operator, k=1, which="LA", return_eigenvectors=False)
        return torch.from_numpy(values), None

    def operator() -> LinearOperator:
        product = PEERS["double backward"](p)

        def multiply(v: Any) -> Any:
            return product(torch.from_numpy(v.reshape(n, 1)))[:, 0].numpy()

        return LinearOperator((n, n), matvec=multiply, dtype="float32")

    # The linear block's dense matrix would be 39 GB; the other block has no Gram matrix.
    dense = {"eigvalsh(dense by vmap)": lambda: eigvalsh(PEERS["vmap(jvp + vjp)"](p)(torch.eye(n)))}
    gram = {"eigvalsh(X^T X)": lambda: eigvalsh(p.inputs.T @ p.inputs)}  # each n_out times
    return {
        "lhkernels, exact": lambda: both(spectrum(H(), "exact")),
        "lhkernels, slq 8 x 60": lambda: both(spectrum(H(), "slq", probes=8, steps=60)),
        "lhkernels, lanczos": lambda: both(spectrum(H(), "lanczos")),
        **(dense if key == "conv" else gram),
        "eigsh, our products": lambda: arpack(H().to_scipy()),
        "eigsh, double backward": lambda: arpack(operator()),
    }


def cells(rows: Rows) -> Table:
    """A line a row: what was timed, the time, and every other figure."""
    heads, lines = [rows[0]["group"], "", "ms", *list(rows[0])[4:]], []
    for row in rows:
        errors = [shown(row[name], spec=".1e") for name in heads[3:]]
        lines.append([row["case"], row["contender"], shown(row["ms"]), *errors])
    ours = [i for i, row in enumerate(rows) if row["contender"].startswith(OURS)]
    return {"columns": heads, "rows": lines, "bold": ours, "left": (0, 1)}
