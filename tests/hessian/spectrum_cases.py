"""Operators with known eigenvalues, for tests of spectra."""

import torch

from lhkernels.hessian.symmetric import SpectralBlock, SymmetricOperator


class Operator:
    """A symmetric matrix that only shows its products."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, V):
        return self.matrix @ V


class RowOperator(SymmetricOperator):
    """The same in the operator's clothes; counts its products."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.dim, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
        self.products = 0

    def product_rows(self, rows):
        self.products += len(rows)
        return rows @ self.matrix

    def __matmul__(self, V):
        raise AssertionError("product_rows is there")


class Blocks(SymmetricOperator):
    """An H with nothing but spectral blocks: a product fails, where no matrix is given."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, *parts, dim=None, matrix=None):
        self.parts = [SpectralBlock(*part) for part in parts]
        self.dim = dim or sum(part.dim for part in self.parts)
        self.matrix = matrix

    def product_rows(self, rows):
        return rows @ self.matrix

    def spectral_blocks(self):
        return iter(self.parts)


def with_eigenvalues(values, dtype=torch.float64):
    values = torch.as_tensor(values, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    A = Q * values @ Q.T
    return ((A + A.T) / 2).to(dtype)


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
