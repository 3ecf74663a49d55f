"""Operators with known eigenvalues, for tests of spectra."""

from types import SimpleNamespace

import torch


class Operator:
    """A symmetric matrix that only shows its products."""

    def __init__(self, matrix, closed_form=None):
        self.matrix, self.closed_form = matrix, closed_form
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, V):
        return self.matrix @ V


class RowOperator(Operator):
    def product_rows(self, rows):
        return rows @ self.matrix

    def __matmul__(self, V):
        raise AssertionError("product_rows is there")


def with_eigenvalues(values, dtype=torch.float64):
    values = torch.as_tensor(values, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    A = Q * values @ Q.T
    return ((A + A.T) / 2).to(dtype)


def blocks(*parts):
    """An H with nothing but spectral blocks: a product would fail."""
    made = [
        SimpleNamespace(matrix=m, multiplicity=k, is_factor=f, law=law) for m, k, f, law in parts
    ]
    dim = sum(k * m.shape[:-2].numel() * m.shape[-1] for m, k, _, _ in parts)
    form = SimpleNamespace(spectral_blocks=lambda: iter(made))
    dtype = torch.float64
    return SimpleNamespace(
        shape=(dim, dim), dtype=dtype, device=torch.device("cpu"), closed_form=form
    )


def linspace(low, high, n):
    return torch.linspace(low, high, n, dtype=torch.float64)


KNOWN = {
    "clusters": torch.tensor([0.0] * 40 + [1.0] * 30 + [1 + 1e-13] * 10 + [2.0] * 20),
    "condition 1e12": torch.logspace(-12, 0, 40, dtype=torch.float64),
    "indefinite": torch.cat([linspace(-3, -1, 20), torch.zeros(13), linspace(0.5, 7, 20)]),
    "near cluster": torch.cat([torch.zeros(30), 1 + 1e-6 * linspace(0, 1, 30)]).double(),
    "outlier": torch.cat([torch.ones(99), torch.tensor([1e6])]).double(),
    "zero": torch.zeros(17, dtype=torch.float64),
    "identity": torch.ones(21, dtype=torch.float64),
    "negative": -torch.ones(5, dtype=torch.float64),
    "scalar": torch.tensor([3.0], dtype=torch.float64),
}
