"""Blocks, inputs and measures of the experiments in local_hessian.py; float64, seeded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median, stdev
from typing import Any

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


def with_norm(layer: nn.Linear, eps: float = 1e-5) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm1d(layer.out_features, eps=eps))


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
    branch = nn.Sequential(linear(n, n, "gaussian", seed), nn.ReLU(), nn.Linear(n, n, bias=False))
    nn.init.normal_(branch[2].weight, std=1 / math.sqrt(n))
    J = jacobian(branch, torch.randn(1, n))
    return J * (scale / torch.linalg.matrix_norm(J, 2))


def residual_jacobian(gain: float, seed: int) -> Tensor:
    """J of a ResNet block's branch, as usually initialised but for the last gamma."""

    def half() -> list[nn.Module]:
        conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(8, track_running_stats=False)]

    torch.manual_seed(seed)
    branch = nn.Sequential(*half(), nn.ReLU(), *half())
    for layer in (branch[0], branch[3]):
        nn.init.kaiming_normal_(layer.weight)
    nn.init.constant_(branch[4].weight, gain)
    return jacobian(branch, torch.randn(4, 8, 5, 5).relu())


def skip_matrix(n: int, ratio: float | None, seed: int) -> Tensor:
    """Q D Q' with random orthogonal Q, Q' and singular values D from 1 down to 1/ratio.

    The identity if ``ratio`` is None, and nothing, 0, if it is 0.
    """
    if not ratio:
        return torch.eye(n) if ratio is None else torch.zeros(n, n)
    torch.manual_seed(2000 + seed)
    left, right = (torch.linalg.qr(torch.randn(n, n))[0] for _ in range(2))
    return left * ratio ** -torch.linspace(0, 1, n) @ right


def chain_condition(n: int, ratio: float | None, scale: float, seeds: Iterable[int]) -> float:
    """Condition number of the Jacobian of blocks S + J, one after another: a seed for each."""
    product = torch.eye(n)
    for seed in seeds:
        product = (skip_matrix(n, ratio, seed) + branch_jacobian(n, scale, seed)) @ product
    return condition(product)


def input_spectrum(block: nn.Module, x: Tensor, approximate: bool = False) -> lh.Spectrum:
    """The exact spectrum of H_z of a block at x."""
    H = lh.LocalHessian(block, x, wrt="input", approximate=approximate)
    return lh.spectrum(H, method="exact")


def normalised_diagonals(name: str, n: int, rows: int, seeds: int, approximate: bool) -> Any:
    """diag(H_w) ||w||^2 / m behind a BN, for all rows w; condition numbers of first rows' H_w."""
    diagonals, conditions = [], []
    for seed in range(seeds):
        layer = linear(n, rows, "gaussian", seed)
        x = normalised_input(name, n, seed)
        # eps plays no part in the statement.
        H = lh.LocalHessian(with_norm(layer, eps=1e-12), x, approximate=approximate).dense()
        blocks = H.view(rows, n, rows, n).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        norms = layer.weight.detach().square().sum(1, keepdim=True)
        diagonals.append((blocks.diagonal(dim1=1, dim2=2) * norms / len(x)).flatten())
        conditions.append(ratio_of_extremes(torch.linalg.eigvalsh(blocks[0])))
    return torch.cat(diagonals), conditions


def kolmogorov_distance(S: lh.Spectrum, law: lh.MarchenkoPastur) -> float:
    """Largest distance between the two distribution functions, on both sides of each jump."""
    at = S.eigenvalues
    sides = (at, torch.nextafter(at, torch.full_like(at, -math.inf)))
    return max((S.cdf(x) - law.cdf(x)).abs().max().item() for x in sides)


def ratio_of_extremes(values: Tensor) -> float:
    """Largest over smallest non-zero; below dim * eps * largest counts as zero."""
    kept = values[values > len(values) * torch.finfo(values.dtype).eps * values.max()]
    return (kept.max() / kept.min()).item()


def condition(J: Tensor, skip: bool = False) -> float:
    """cond(J), or cond(I + J); that of the Gauss-Newton H_z is its square."""
    return ratio_of_extremes(torch.linalg.svdvals(torch.eye(len(J)) + J if skip else J))


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """J (outputs, inputs), the whole batch flattened."""
    J = torch.func.jacrev(lambda z: module(z.view_as(x)).flatten())(x.flatten())
    return J.detach()


def spread(values: Sequence[float]) -> dict[str, float]:
    middle = {"mean": fmean(values), "median": median(values)}
    return {**middle, "least": min(values), "largest": max(values), "sd": stdev(values)}


def over(values: Sequence[Any], seeds: int, measure: Any, **options: Any) -> list[Any]:
    """At each value, the spread of ``measure(value, seed)`` over the seeds."""
    return [spread([measure(value, s, **options) for s in range(seeds)]) for value in values]
