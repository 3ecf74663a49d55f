"""Blocks, inputs and measures of the experiments in local_hessian.py; float64, seeded."""

from __future__ import annotations

import math
from statistics import fmean, median, stdev

import torch
from torch import Tensor, nn

import lhkernels as lh


def linear(n_in: int, n_out: int, kind: str, seed: int, scale: float = 1.0) -> nn.Linear:
    """A layer without bias: entries N(0, 1/n_out), or orthonormal rows or columns.

    It also seeds what is drawn after it.
    """
    torch.manual_seed(seed)
    layer = nn.Linear(n_in, n_out, bias=False)
    if kind == "gaussian":
        nn.init.normal_(layer.weight, std=scale / math.sqrt(n_out))
    else:
        nn.init.orthogonal_(layer.weight, gain=scale)
    return layer


def normalised_input(name: str, n: int, seed: int) -> Tensor:
    """(m, n) outputs of a batch norm, of independent noise or of a random layer on digits."""
    torch.manual_seed(1000 + seed)
    norm = nn.BatchNorm1d(n, eps=1e-12, affine=False)
    if name == "independent":
        return norm(torch.randn(1347, n))
    from lhkernels.training.sources import digits

    images = digits().train_images.flatten(1).double()
    x = norm(images @ torch.randn(images.shape[1], n))
    return x.relu() if name.endswith("ReLU") else x


def branch_jacobian(n: int, scale: float, seed: int) -> Tensor:
    """J of linear-ReLU-linear with Gaussian weights at a Gaussian input, scaled to norm ``scale``.

    ReLU switches about half of the hidden units off, so about half of J's singular values are 0.
    """
    torch.manual_seed(seed)
    branch = nn.Sequential(linear(n, n, "gaussian", seed), nn.ReLU(), nn.Linear(n, n, bias=False))
    nn.init.normal_(branch[2].weight, std=1 / math.sqrt(n))
    J = jacobian(branch, torch.randn(1, n))
    return J * (scale / torch.linalg.matrix_norm(J, 2))


def residual_branch(gain: float, seed: int) -> tuple[nn.Module, Tensor]:
    """A ResNet block's branch, as usually initialised but for the last gamma, and an input."""
    torch.manual_seed(seed)
    branch = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, track_running_stats=False),
    )
    for layer in (branch[0], branch[3]):
        nn.init.kaiming_normal_(layer.weight)
    nn.init.constant_(branch[4].weight, gain)
    return branch, torch.randn(4, 8, 5, 5).relu()


def skip_matrix(n: int, ratio: float, seed: int) -> Tensor:
    """Q D Q' with random orthogonal Q, Q' and singular values D from 1 down to 1/ratio."""
    generator = torch.Generator().manual_seed(2000 + seed)
    left, right = (
        torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    return left * ratio ** -torch.linspace(0, 1, n) @ right


def chain_condition(name: str, n: int, depth: int, scale: float, seed: int) -> float:
    """Condition number of the Jacobian of ``depth`` blocks S_b + J_b, one after another."""
    product = torch.eye(n)
    for b in range(depth):
        own = 100 * seed + b
        skip = {
            "no skip": torch.zeros(n, n),
            "identity": torch.eye(n),
            "orthogonal": skip_matrix(n, 1.0, own),
            "S with cond 3": skip_matrix(n, 3.0, own),
        }[name]
        product = (skip + branch_jacobian(n, scale, own)) @ product
    return condition_of_jacobian(product)


def input_spectrum(block: nn.Module, x: Tensor, approximate: bool = False) -> lh.Spectrum:
    """The exact spectrum of H_z of a block at x."""
    H = lh.LocalHessian(block, x, wrt="input", approximate=approximate)
    return lh.spectrum(H, method="exact")


def values_of(found: lh.Spectrum) -> Tensor:
    """A spectrum's eigenvalues as (values, weights), ascending."""
    return torch.stack([found.eigenvalues, found.weights])


def kolmogorov_distance(spectrum: Tensor, law: lh.MarchenkoPastur) -> float:
    """Largest distance between the two distribution functions, on both sides of each jump."""
    values, weights = spectrum
    above = weights.cumsum(0) / weights.sum()
    below = above - weights / weights.sum()
    expected = law.cdf(values)
    left = torch.where(values > 0, expected, 0.0)  # of the atom at 0 nothing lies below
    last = torch.cat([values[1:] > values[:-1], torch.tensor([True])])
    first = torch.cat([torch.tensor([True]), values[1:] > values[:-1]])
    return max((above - expected)[last].abs().max(), (below - left)[first].abs().max()).item()


def condition(values: Tensor) -> float:
    """Largest over smallest non-zero; below dim * eps * largest counts as zero."""
    kept = values[values > len(values) * torch.finfo(values.dtype).eps * values.max()]
    return (kept.max() / kept.min()).item()


def condition_of_jacobian(J: Tensor) -> float:
    """cond(J); that of the Gauss-Newton H_z is its square."""
    return condition(torch.linalg.svdvals(J))


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """J (outputs, inputs), the whole batch flattened."""
    J = torch.func.jacrev(lambda z: module(z.view_as(x)).flatten())(x.flatten())
    return J.detach()


def spread(values: list[float]) -> dict[str, float]:
    found = {"mean": fmean(values), "median": median(values), "least": min(values)}
    return {**found, "largest": max(values), "sd": stdev(values)}
