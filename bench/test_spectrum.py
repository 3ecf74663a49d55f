"""The spectrum of a block's local Hessian under pytest-benchmark, from the block to eigenvalues.

Each is held against the eigenvalues in float64: ``largest`` is the relative error of the largest
eigenvalue, ``W1`` the mean distance of the quantiles (Wasserstein-1) relative to it; ARPACK
(``scipy.sparse.linalg.eigsh``) finds the largest alone.
"""

import pytest
import torch

from bench import peers
from bench.blocks import Case
from lhkernels.hessian import LocalHessian, spectrum

CPU = torch.device("cpu")

CASES = {
    "conv": Case("conv2d", 16, 8, 32, 8, 1),  # dim 1152
    "linear": Case("linear", 384, 256, 2048, 0, 1, batch_norm=False),  # dim 98304
}


def of_ours(method, **options):
    def find(problem):
        S = spectrum(LocalHessian(problem.module, problem.inputs), method, **options)
        return S.eigenvalues, S.weights

    return find


def dense_eigvalsh(problem):
    dim = problem.point.numel()
    H = peers.vmap_jvp_vjp(problem)(torch.eye(dim))
    return torch.linalg.eigvalsh(H), torch.full((dim,), 1 / dim)


def gram_eigvalsh(problem):
    values = torch.linalg.eigvalsh(problem.inputs.T @ problem.inputs)  # each n_out times
    return values, torch.full_like(values, 1 / len(values))


def arpack(operator):
    def find(problem):
        from scipy.sparse.linalg import eigsh

        values = eigsh(operator(problem), k=1, which="LA", return_eigenvectors=False)
        return torch.from_numpy(values), None

    return find


def double_backward_operator(problem):
    from scipy.sparse.linalg import LinearOperator

    dim, product = problem.point.numel(), peers.double_backward(problem)

    def multiply(v):
        return product(torch.from_numpy(v.reshape(dim, 1)))[:, 0].numpy()

    return LinearOperator((dim, dim), matvec=multiply, dtype="float32")


CONTENDERS = {
    "lhkernels, exact": of_ours("exact"),
    "lhkernels, slq 8 x 60": of_ours("slq", probes=8, steps=60),
    "lhkernels, lanczos": of_ours("lanczos"),
    "eigvalsh(dense by vmap)": dense_eigvalsh,
    "eigvalsh(X^T X)": gram_eigvalsh,
    "eigsh, our products": arpack(
        lambda p: LocalHessian(p.module, p.inputs).to_scipy(),
    ),
    "eigsh, double backward": arpack(double_backward_operator),
}
IMPOSSIBLE = {("conv", "eigvalsh(X^T X)"), ("linear", "eigvalsh(dense by vmap)")}


@pytest.fixture(scope="module")
def eigenvalues():
    """In float64, by case: of the dense matrix, or of X^T X for a linear layer."""
    conv = peers.problem(CASES["conv"], CPU, torch.float64)
    dense = LocalHessian(conv.module, conv.inputs, form="autograd").dense()
    linear = peers.problem(CASES["linear"], CPU, torch.float64)
    grams = {"conv": dense, "linear": linear.inputs.T @ linear.inputs}
    return {case: torch.linalg.eigvalsh(matrix) for case, matrix in grams.items()}


def wasserstein(values, weights, true):
    """``int |F - G| dx`` of two distributions of eigenvalues."""
    x = torch.cat([values, true]).sort().values
    order = values.argsort()
    F = torch.cat([torch.zeros(1), weights[order].cumsum(0)])
    ours = F[torch.searchsorted(values[order], x[:-1], right=True)]
    theirs = torch.searchsorted(true, x[:-1], right=True) / len(true)
    return float(((ours - theirs).abs() * x.diff()).sum())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_spectrum(benchmark, case, contender, eigenvalues):
    if (case, contender) in IMPOSSIBLE:
        pytest.skip("no such structure" if case == "conv" else "39 GB")
    problem = peers.problem(CASES[case], CPU)
    true = eigenvalues[case]
    values, weights = CONTENDERS[contender](problem)
    error = float(abs(values.max() - true[-1]) / true[-1])
    assert error < 1e-3
    info = {"case": CASES[case].title.rpartition(", K")[0], "contender": contender}
    info["largest"] = error
    if weights is not None:
        info["W1"] = wasserstein(values.double(), weights.double(), true) / float(true[-1])
        assert info["W1"] < 0.02
    benchmark.group = f"spectrum {case}"
    benchmark.extra_info.update(info)
    benchmark.pedantic(CONTENDERS[contender], args=(problem,), rounds=3, warmup_rounds=1)
