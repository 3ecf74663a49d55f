"""Stochastic Lanczos quadrature: the spectral distribution of H from a few random vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lhkernels.hessian.lanczos import Ritz, Rows, lanczos

DISTRIBUTIONS = ("rademacher", "gaussian")
STEPS = 100
BASIS_BYTES = 1 << 30  # default limit of the Lanczos basis

_CONVERGED = 0.01  # a Ritz value with a residual under this part of its gap is an eigenvalue


def default_probes(dim: int) -> int:
    """So many that the sampling error of the CDF is below 0.3 % (95 % of the time), 8 to 200.

    The CDF of K probes deviates like a Brownian bridge of size ``sqrt(2 / (K dim))``.
    """
    return max(8, min(200, math.ceil(200_000 / dim)))


def quadrature(
    rows: Rows,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    probes: int,
    steps: int,
    seed: int = 0,
    distribution: str = "rademacher",
    tolerance: float | None = None,
    memory_limit: int | None = None,
) -> list[Ritz]:
    """A Gauss quadrature of the spectral measure of each of ``probes`` random unit vectors.

    Each is exact for powers up to ``2 * steps - 1``; the mean over the probes estimates the
    spectral distribution of H, every eigenvalue with weight 1 / dim. The probes are scaled to
    length 1, drawn on the CPU from a generator of their own, one by one: the same for every device
    and every ``memory_limit``.

    Args:
        distribution: ``"rademacher"`` (entries +-1) or ``"gaussian"``.
        memory_limit: bytes for the Lanczos basis, ``probes * steps * dim`` elements; with less,
            the probes are done in turns (at least one at a time).
        tolerance: see :func:`lhkernels.hessian.lanczos.lanczos`.
    """
    generator = torch.Generator().manual_seed(seed)
    each = min(steps, dim) * dim * torch.finfo(dtype).bits // 8
    together = max(1, (BASIS_BYTES if memory_limit is None else memory_limit) // each)
    result: list[Ritz] = []
    while len(result) < probes:
        count = min(together, probes - len(result))
        start = torch.stack([_probe(dim, distribution, generator) for _ in range(count)])
        result.extend(lanczos(rows, start.to(device, dtype), steps, tolerance=tolerance))
    return result


def _probe(dim: int, distribution: str, generator: torch.Generator) -> Tensor:
    if distribution == "gaussian":
        return torch.randn(dim, generator=generator, dtype=torch.float64)
    return torch.randint(2, (dim,), generator=generator).double() * 2.0 - 1.0


def moment(quadratures: Sequence[Ritz], dim: int, k: int) -> tuple[float, float]:
    """``trace(H^k) / dim`` and its standard error, over the probes.

    With a single probe the error is the root of ``2 / (dim + 2) * (m_2k - m_k^2)``, ``m`` its own
    moments: the variance for a random direction, and an upper bound of that for +-1 entries.
    """
    each = torch.stack([(q.weights * q.values**k).sum() for q in quadratures])
    if len(quadratures) > 1:
        return float(each.mean()), float(each.std()) / math.sqrt(len(quadratures))
    spread = float((quadratures[0].weights * (quadratures[0].values ** k - each[0]) ** 2).sum())
    return float(each[0]), math.sqrt(2.0 / (dim + 2) * spread)


class Measure:
    """A probability measure: the mean of K measures, each of jumps and of uniform pieces.

    Args:
        pieces: K triples (left, right, mass) of float64 tensors (M_k,), ascending and not
            overlapping; ``left == right`` is a jump. The masses of each sum to 1.
    """

    def __init__(self, pieces: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        longest = max(left.numel() for left, _, _ in pieces)
        shape = (len(pieces), longest)
        self.left = torch.full(shape, math.inf, dtype=torch.float64)
        self.right = torch.full(shape, math.inf, dtype=torch.float64)
        self.mass = torch.zeros(shape, dtype=torch.float64)
        for k, (left, right, mass) in enumerate(pieces):
            size = left.numel()
            self.left[k, :size], self.right[k, :size] = left, right
            self.mass[k, :size] = mass / mass.sum()
        self._upto = self.mass.cumsum(1)
        self._table: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def of_jumps(cls, values: Tensor, weights: Tensor) -> Measure:
        """A jump of ``weights[i]`` at every ``values[i]``, ascending."""
        return cls([(values, values, weights)])

    @classmethod
    def of_quadratures(cls, quadratures: list[Ritz], rounding: float, floor: float) -> Measure:
        """What the quadratures say of the distribution between their nodes.

        At a node, the CDF of a continuous spectrum has passed half the node's weight, to second
        order in 1 / steps; so it is interpolated linearly between these points. A node that is an
        eigenvalue keeps its weight as a jump: at exactly 0, or where it has converged (see
        :func:`converged`).

        Args:
            floor: no piece reaches below this (0 for a positive semidefinite H, or -inf).
        """
        return cls([_pieces(quadrature, rounding, floor) for quadrature in quadratures])

    def cdf(self, x: Tensor) -> Tensor:
        """P(t <= x) for float64 CPU ``x`` of any shape; NaN stays NaN."""
        return self._evaluate(x.reshape(-1), right=True).view(x.shape)

    def quantile(self, q: Tensor) -> Tensor:
        """The smallest point x with ``cdf(x) >= q``, for ``q`` in [0, 1], float64, CPU."""
        points, before, upto = self._tabulate()
        last = points.numel() - 1
        i = torch.searchsorted(upto, q.reshape(-1).contiguous()).clamp(max=last)
        j = (i - 1).clamp(min=0)
        rise = before[i] - upto[j]
        part = torch.where(rise > 0, (q.reshape(-1) - upto[j]) / rise, torch.ones_like(rise))
        value = points[j] + (points[i] - points[j]) * part.clamp(0.0, 1.0)
        return torch.where(i == 0, points[0], value).view(q.shape)

    def smoothed(self, x: Tensor, width: float) -> Tensor:
        """Density of the measure without its jump at 0, convolved with a Gaussian (std ``width``).

        Every piece contributes its own convolution, in closed form.
        """
        keep = (self.mass > 0) & ((self.left != 0) | (self.right != 0))
        left, right = self.left[keep], self.right[keep]
        mass = self.mass[keep] / self.mass.shape[0]
        flat = x.reshape(-1)
        result = torch.zeros_like(flat)
        narrow = right - left < 1e-3 * width
        middle, half = (left + right)[narrow] / 2.0, math.sqrt(0.5) / width
        for part in _parts(flat.numel(), left.numel()):
            t = flat[part].unsqueeze(1)
            bell = (-0.5 * ((t - middle) / width) ** 2).exp() / (math.sqrt(2 * math.pi) * width)
            upper = torch.erf((t - left[~narrow]) * half) - torch.erf((t - right[~narrow]) * half)
            slope = 0.5 * mass[~narrow] / (right - left)[~narrow]
            result[part] = bell @ mass[narrow] + upper @ slope
        return result.view(x.shape)

    def _tabulate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every point where the CDF bends or jumps, and its values just before and at it."""
        if self._table is None:
            keep = self.mass > 0
            points = torch.cat([self.left[keep], self.right[keep]]).unique()
            before, upto = (self._evaluate(points, right=side) for side in (False, True))
            self._table = points, before, upto
        return self._table

    def _evaluate(self, x: Tensor, right: bool) -> Tensor:
        """CDF at 1-D ``x``, with (``right``) or without a jump there."""
        count = self.mass.shape[0]
        result = torch.empty_like(x)
        for part in _parts(x.numel(), count):
            t = x[part].expand(count, -1).contiguous()
            i = torch.searchsorted(self.left, t, right=right) - 1
            at = i.clamp(min=0)
            left, stop = self.left.gather(1, at), self.right.gather(1, at)
            mass, upto = self.mass.gather(1, at), self._upto.gather(1, at)
            inside = (t < stop) & (stop > left)
            ahead = torch.where(inside, mass * ((stop - t) / (stop - left)), torch.zeros_like(t))
            value = torch.where(i < 0, torch.zeros_like(t), upto - ahead)
            result[part] = value.mean(0).clamp(0.0, 1.0)
        if right:
            result[x >= self.right[self.mass > 0].max()] = 1.0
        return torch.where(x.isnan(), x, result)


def converged(ritz: Ritz, rounding: float) -> Tensor:
    """Which Ritz values are eigenvalues (bool): the residual bound is under 1 % of the distance to
    the next Ritz value, or under ``rounding``."""
    return (ritz.residuals <= rounding) | (ritz.residuals <= _CONVERGED * _gaps(ritz.values))


def set_zeros(ritz: Ritz, rounding: float, zero_tolerance: float | None) -> Ritz:
    """``ritz`` with 0 for what counts as zero.

    That is ``|value| <= zero_tolerance``. None: ``|value| <= rounding``, or a converged value that
    is nearer to 0 than its error, ``residual^2 / gap`` (Kato-Temple).
    """
    size = ritz.values.abs()
    if zero_tolerance is None:
        gaps = _gaps(ritz.values)
        isolated = ritz.residuals <= _CONVERGED * gaps
        zero = (size <= rounding) | (
            isolated & (gaps > 0) & (size * gaps <= ritz.residuals.square())
        )
    else:
        zero = size <= zero_tolerance
    return replace(ritz, values=torch.where(zero, torch.zeros_like(size), ritz.values))


def _gaps(values: Tensor) -> Tensor:
    """Distances to the nearest other value; 0 for a lone one, of which they are not known."""
    if values.numel() == 1:
        return torch.zeros_like(values)
    infinite, steps = values.new_full((1,), math.inf), values.diff()
    return torch.minimum(torch.cat([infinite, steps]), torch.cat([steps, infinite]))


def _pieces(ritz: Ritz, rounding: float, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    values, weights, residuals = ritz.values, ritz.weights, ritz.residuals
    infinite, steps = values.new_full((1,), math.inf), values.diff()
    jump = (values == 0) | converged(ritz, rounding)

    both = ~jump[:-1] & ~jump[1:]  # the CDF rises linearly between two nodes of a continuous part
    inner = (values[:-1][both], values[1:][both], (weights[:-1] + weights[1:])[both] / 2.0)

    # At the ends of a continuous part: the slope goes on until the other half weight is used up.
    pair = (weights[:-1] + weights[1:]).clamp(min=1e-300)
    reach = torch.where(both, steps / pair, torch.zeros_like(steps))
    nothing = values.new_zeros(1)
    to_right, to_left = torch.cat([reach, nothing]), torch.cat([nothing, reach])
    below = torch.cat([values.new_full((1,), floor), values[:-1]])
    above = torch.cat([values[1:], infinite])
    no = both.new_zeros(1)
    joins_right, joins_left = torch.cat([both, no]), torch.cat([no, both])
    first, last = ~jump & ~joins_left, ~jump & ~joins_right
    left_reach = torch.where(joins_right, weights * to_right, residuals)
    right_reach = torch.where(joins_left, weights * to_left, residuals)
    start = torch.minimum(torch.maximum(values - left_reach, below), values)
    stop = torch.minimum(values + right_reach, above)

    parts = [
        (values[jump], values[jump], weights[jump]),
        inner,
        (start[first], values[first], weights[first] / 2.0),
        (values[last], stop[last], weights[last] / 2.0),
    ]
    left, right, mass = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.argsort(right, stable=True)
    order = order[torch.argsort(left[order], stable=True)]
    return left[order], right[order], mass[order]


def _parts(count: int, width: int, limit: int = 1 << 21) -> list[slice]:
    """Slices of ``range(count)`` so that a table of ``width`` columns stays small."""
    step = max(1, limit // max(1, width))
    return [slice(i, i + step) for i in range(0, count, step)]
