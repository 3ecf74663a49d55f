"""The Lanczos process with full reorthogonalisation, for several start vectors at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = Callable[[Tensor], Tensor]  # (K, dim) -> (K, dim): every row times H

_CHECK_EVERY = 10  # steps between two looks at the convergence of the extreme Ritz values


@dataclass(frozen=True)
class Ritz:
    """What the Krylov space of one start vector says about the spectrum of H.

    Attributes:
        values: Ritz values, ascending, (m,), float64, CPU.
        weights: squared first components of the Ritz vectors, (m,), sum 1: the Gauss quadrature
            weights for the start vector's spectral measure.
        residuals: ``||H y - theta y||`` of each unit Ritz vector, (m,): an eigenvalue of H lies
            within this of the Ritz value, up to the rounding of the products.
        exhausted: the Krylov space is invariant under H: the quadrature is exact for every power.
    """

    values: Tensor
    weights: Tensor
    residuals: Tensor
    exhausted: bool


def lanczos(
    rows: Rows,
    start: Tensor,
    steps: int,
    *,
    tolerance: float | None = None,
) -> list[Ritz]:
    """``steps`` Lanczos steps from every row of ``start``, each with a Krylov space of its own.

    Every new vector is orthogonalised against all former ones of its process, twice. Vectors and
    products have the dtype of ``start``; the residual vector and the entries of the tridiagonal
    matrix are computed in float64. A process whose residual falls to 10 roundings of its largest
    product has found an invariant subspace: it stops there, and the others go on.

    The basis takes ``K * steps * dim`` elements of that dtype, some five vectors come on top for
    each process, two of them in float64.

    Args:
        rows: the products with H, (K, dim) -> (K, dim).
        start: (K, dim), floating, rows non-zero; they are scaled to length 1.
        steps: upper limit of the steps, >= 1; more than ``dim`` is the same as ``dim``.
        tolerance: stop early, as soon as the residual bounds of the smallest and the largest Ritz
            value of every process are below ``tolerance`` times its largest ``|Ritz value|``.

    Raises:
        ValueError: a product that is not finite.
    """
    count, dim = start.shape
    steps = min(steps, dim)
    basis = start.new_empty((count, steps, dim))
    alpha = torch.zeros((count, steps), dtype=torch.float64)
    beta = torch.zeros_like(alpha)
    scale = torch.zeros(count, dtype=torch.float64, device=start.device)
    lengths = torch.zeros(count, dtype=torch.long)
    active = torch.arange(count, device=start.device)
    breakdown = 10.0 * torch.finfo(start.dtype).eps
    q = _unit(start.double()).to(start.dtype)
    for step in range(steps):
        basis[:, step] = q
        product = rows(q)
        _check_finite(product)
        w = product.double()
        scale[active] = torch.maximum(scale[active], w.norm(dim=1))
        a = (q.double() * w).sum(1)
        w = _orthogonalise(w, basis[:, : step + 1])
        b = w.norm(dim=1)
        b[b <= breakdown * scale[active]] = 0.0
        if step + 1 == dim:
            b.zero_()  # the space is the whole one
        where = active.cpu()
        alpha[where, step], beta[where, step] = a.cpu(), b.cpu()
        lengths[where] = step + 1
        going = b > 0
        if not going.all():
            active, w, basis = active[going], w[going], basis[going]
        if step + 1 == steps or not active.numel():
            break
        if tolerance is not None and (step + 1) % _CHECK_EVERY == 0:
            so_far = map(_ritz, alpha, beta, lengths.tolist())
            if all(_extremes_converged(ritz, tolerance) for ritz in so_far):
                break
        q = _unit(w).to(start.dtype)
    return list(map(_ritz, alpha, beta, lengths.tolist()))


def _ritz(alpha: Tensor, beta: Tensor, length: int) -> Ritz:
    """Of the tridiagonal matrix after ``length`` steps; the last ``beta`` is the residual's norm,
    0 where the Krylov space is invariant."""
    off, last = beta[: length - 1], beta[length - 1]
    matrix = torch.diag(alpha[:length]) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    weights = vectors[0].square()
    return Ritz(values, weights / weights.sum(), last * vectors[-1].abs(), bool(last == 0))


def _unit(w: Tensor) -> Tensor:
    return w / w.norm(dim=1, keepdim=True)


def _orthogonalise(w: Tensor, basis: Tensor) -> Tensor:
    """``w`` (K, dim) less its components in ``basis`` (K, m, dim), twice.

    The second pass removes what the rounding of the first has left: twice is enough (Kahan).
    """
    for _ in range(2):
        components = torch.bmm(basis, w.to(basis.dtype).unsqueeze(2))
        w = w - torch.bmm(components.transpose(1, 2), basis).squeeze(1)
    return w


def _extremes_converged(ritz: Ritz, tolerance: float) -> bool:
    limit = tolerance * float(ritz.values.abs().max())
    return bool(ritz.residuals[0] <= limit and ritz.residuals[-1] <= limit)


def _check_finite(product: Tensor) -> None:
    if not product.isfinite().all():
        raise ValueError(
            "H: a product H @ v is not finite; look for NaN, inf or overflow in the block's "
            "weights and inputs, or use float64"
        )
