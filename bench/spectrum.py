"""Time the spectrum of a block's local Hessian on the CPU, each way alone.

From the block to its eigenvalues. They are held against those in float64: 'largest' is the
relative error of the largest, 'W1' the mean distance of the quantiles (Wasserstein-1) relative to
it; ARPACK (scipy.sparse.linalg.eigsh) finds the largest alone.
"""

from argparse import Namespace
from functools import partial
from typing import Any

import torch

from bench.blocks import PEERS, Case, Problem
from bench.common import Measured
from bench.norms import alone, cells  # noqa: F401 (a kind has cells)
from lhkernels.hessian import LocalHessian, spectrum

CASES = {
    "conv": Case("conv2d", 16, 8, 32, 8, 1),  # dim 1152
    "linear": Case("linear", 384, 256, 2048, 0, 1, batch_norm=False),  # dim 98304
}


def measure(args: Namespace) -> Measured:
    from scipy.stats import wasserstein_distance

    for key, case in CASES.items():
        p, exact = Problem(case), Problem(case, dtype=torch.float64)
        H = LocalHessian(exact.module, exact.inputs, form="autograd")
        gram = exact.inputs.T @ exact.inputs if key == "linear" else None
        true = torch.linalg.eigvalsh(H.dense() if gram is None else gram)
        rows = []
        for name, find in contenders(key).items():
            values, weights = find(p)
            row = {"case": case.title.rpartition(", K")[0], "contender": name, "W1": None}
            row["ms"] = alone(partial(find, p), rounds=3, warm_up=1)
            if weights is not None:
                row["W1"] = wasserstein_distance(values, true, weights) / float(true[-1])
            rows.append(row | {"largest": float(abs(values.max() - true[-1]) / true[-1])})
        yield rows


def contenders(key: str) -> dict[str, Any]:
    """From a problem to eigenvalues and weights, those None where only the largest is found."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    def ours(p: Problem, method: str, **options: int) -> tuple:
        S = spectrum(LocalHessian(p.module, p.inputs), method, **options)
        return S.eigenvalues, S.weights

    def all_of(matrix: torch.Tensor) -> tuple:
        values = torch.linalg.eigvalsh(matrix)
        return values, torch.full_like(values, 1 / len(values))

    def largest(operator: Any) -> tuple:
        values = eigsh(operator, k=1, which="LA", return_eigenvectors=False)
        return torch.from_numpy(values), None

    def by_double_backward(p: Problem) -> LinearOperator:
        dim, product = p.point.numel(), PEERS["double backward"](p)
        return LinearOperator(
            (dim, dim), lambda v: product(torch.from_numpy(v.reshape(dim, 1))).numpy(), dtype="f4"
        )

    found = {
        "lhkernels, exact": partial(ours, method="exact"),
        "lhkernels, slq 8 x 60": partial(ours, method="slq", probes=8, steps=60),
        "lhkernels, lanczos": partial(ours, method="lanczos"),
        "eigvalsh(dense by vmap)": lambda p: all_of(
            PEERS["vmap(jvp + vjp)"](p)(torch.eye(p.point.numel()))
        ),
        "eigvalsh(X^T X)": lambda p: all_of(p.inputs.T @ p.inputs),  # each n_out times
        "eigsh, our products": lambda p: largest(LocalHessian(p.module, p.inputs).to_scipy()),
        "eigsh, double backward": lambda p: largest(by_double_backward(p)),
    }
    # The linear block's dense matrix would be 39 GB; the other has no such structure.
    del found["eigvalsh(X^T X)" if key == "conv" else "eigvalsh(dense by vmap)"]
    return found
