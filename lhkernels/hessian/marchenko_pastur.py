"""The Marchenko-Pastur law: what the spectrum of ``W^T W`` looks like for a random ``W``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lhkernels.hessian.arguments import elementwise, positive, shares, whole

_SERIES_BELOW = 0.05  # under this sqrt(ratio), the closed form of the CDF cancels: use its series
_SERIES_TERMS = 16  # 0.05^14 / 16 is far below the rounding of a double


class Support(NamedTuple):
    """The interval that carries the continuous part of the law."""

    low: float
    high: float


class MarchenkoPastur:
    r"""The law of the eigenvalues of a Gaussian layer's input Hessian, paper (10)-(11) and (19).

    ``W`` is (n_out, n_in), both large, ``c = n_out / n_in``. With ``normalized=False`` its entries
    are independent N(0, variance / n_out), and the law is that of the n_in eigenvalues of
    ``W^T W``: mass ``1 - c`` at zero if ``c < 1``, and the density, (11),

    .. math:: \frac{c}{2 \pi \sigma^2} \frac{\sqrt{(c_+ - t)(t - c_-)}}{t}, \qquad
              c_\pm = \frac{\sigma^2 (1 \pm \sqrt c)^2}{c} .

    With ``normalized=True`` the rows are scaled to length 1, and the law is that of
    ``sum_i w_i w_i^T / ||w_i||^2``, (19): the same atom, and the density
    ``sqrt((c+ - t)(t - c-)) / (2 pi t)`` on ``c+- = (1 +- sqrt c)^2``. It is (11) with
    ``variance = c``, because a unit row has entries of variance ``1 / n_in = c / n_out``. The
    variance of the weights has no influence (Remark 2), and ``variance`` is ignored.

    Batch normalisation divides by ``Var[z_i] = w_i^T Cov(x) w_i`` and not by ``||w_i||^2``, (17).
    So (19) is the spectrum behind it where ``Cov(x) = I``; where ``Cov(x) = v I`` the eigenvalues
    are those of the law divided by ``v``, and for another covariance the law does not hold.

    Args:
        ratio: ``c = n_out / n_in``, finite and > 0.
        variance: ``n_out`` times the variance of an entry, finite and > 0; the mean eigenvalue of
            (10). With ``normalized=True`` it is not used, and is kept as None.
        normalized: (19) instead of (10)-(11).

    Raises:
        TypeError, ValueError: naming the argument, its value and its range.

    Example:
        >>> law = MarchenkoPastur(ratio=0.5)
        >>> law.atom, law.cdf(law.support.high)
        (0.5, 1.0)
    """

    def __init__(
        self, ratio: float, variance: float | None = 1.0, normalized: bool = False
    ) -> None:
        self.ratio = positive("MarchenkoPastur: ratio", ratio, "pass n_out / n_in", TypeError)
        self.normalized = bool(normalized)
        self.variance: float | None = None
        if not self.normalized:
            remedy = "pass n_out times the variance of an entry, such as 1.0"
            self.variance = positive("MarchenkoPastur: variance", variance, remedy, TypeError)

    @property
    def mean(self) -> float:
        """Mean eigenvalue with the atom, ``variance`` or ``ratio`` if normalized."""
        return self.ratio if self.variance is None else self.variance

    @property
    def atom(self) -> float:
        """Mass at 0, ``1 - c`` for ``c < 1``, else 0."""
        return max(0.0, 1.0 - self.ratio)

    @property
    def support(self) -> Support:
        """``(c-, c+)``: where the density is positive. The atom at 0 lies outside if ``c < 1``."""
        scale = self.mean / self.ratio
        root = math.sqrt(self.ratio)
        return Support(scale * (1.0 - root) ** 2, scale * (1.0 + root) ** 2)

    def moment(self, k: int) -> float:
        """The mean of ``t^k`` under the law, the atom included; a whole ``k >= 0``.

        Correctly rounded; ``inf`` where it is larger than any float.
        """
        k = whole("moment: k", k, 0, "pass 0, 1, 2 ...")
        if k == 0:
            return 1.0
        # In whole numbers: powers of the ratio and of the mean leave a double's range on the way.
        p, q = self.ratio.as_integer_ratio()
        total = sum(
            math.comb(k, j) * math.comb(k - 1, j) // (j + 1) * q**j * p ** (k - 1 - j)
            for j in range(k)
        )
        numerator, denominator = self.mean.as_integer_ratio()
        try:
            return numerator**k * total / (denominator**k * p ** (k - 1))
        except OverflowError:
            return math.inf

    def pdf(self, x: Any) -> Any:
        """Density of the continuous part (its integral is ``min(1, c)``); the atom is not in it.

        Args:
            x: float, (nested) list, array or tensor; computed in float64.

        Returns:
            The same kind, shape and floating dtype as ``x``. For ``c = 1`` the density diverges at
            0, where it is ``inf``. NaN stays NaN.
        """
        return elementwise("x", x, self._pdf)

    def cdf(self, x: Any) -> Any:
        """Probability of an eigenvalue ``<= x``, the atom included (in and out as in :meth:`pdf`).

        A closed form, with no quadrature: absolute error of some 1e-15.
        """
        return elementwise("x", x, self._cdf)

    def quantile(self, q: Any) -> Any:
        """The smallest ``t >= 0`` with ``cdf(t) >= q`` (in and out as in :meth:`pdf`).

        Raises:
            ValueError: a ``q`` outside [0, 1].
        """
        return elementwise("q", q, self._quantile)

    def _pdf(self, x: Tensor) -> Tensor:
        low, high = self.support
        inside = (x >= low) & (x <= high)
        t = torch.where(inside, x, torch.full_like(x, high))
        # sqrt by factors: (high - t) * (t - low) would underflow for small variances.
        density = (high - t).sqrt() * (t - low).sqrt() / t
        if low == 0.0:
            density = (high - t).sqrt() / t.sqrt()
        density = density * (self.ratio / (2.0 * math.pi * self.mean))
        return torch.where(x.isnan(), x, torch.where(inside, density, torch.zeros_like(x)))

    def _cdf(self, x: Tensor) -> Tensor:
        low, high = self.support
        t = x.clamp(low, high)
        phi = 2.0 * torch.atan2((t - low).sqrt(), (high - t).sqrt())
        continuous = min(1.0, self.ratio) * self._angle_cdf(phi)
        total = torch.where(x >= 0.0, self.atom + continuous, torch.zeros_like(x))
        return torch.where(x.isnan(), x, torch.where(x >= high, torch.ones_like(x), total))

    def _quantile(self, q: Tensor) -> Tensor:
        low, high = self.support
        target = ((shares("quantile: q", q) - self.atom) / min(1.0, self.ratio)).clamp(0.0, 1.0)
        left, right = torch.zeros_like(q), torch.full_like(q, math.pi)
        for _ in range(60):  # halves [0, pi] down to the rounding of a double
            middle = (left + right) / 2.0
            below = self._angle_cdf(middle) < target
            left, right = torch.where(below, middle, left), torch.where(below, right, middle)
        value = low + (high - low) * torch.sin(right / 2.0) ** 2
        value = torch.where(q >= 1.0, torch.full_like(q, high), value)
        at_zero = torch.zeros_like(q) if self.atom > 0.0 else torch.full_like(q, low)
        return torch.where(q <= self.atom, at_zero, value)

    def _angle_cdf(self, phi: Tensor) -> Tensor:
        """CDF of the continuous part, scaled to 1, at ``t = (low + high - (high - low) cos)/2``.

        With that substitution the density is ``(2/pi) sin^2 / (1 + r^2 - 2 r cos)`` for both
        ``r = sqrt(c)`` and ``1 / sqrt(c)`` (``W^T W`` and ``W W^T`` share their non-zero
        eigenvalues), so take ``r <= 1``. Its integral follows from partial fractions.
        """
        root = math.sqrt(self.ratio)
        r = min(root, 1.0 / root)
        delta = torch.atan2(r * phi.sin(), 1.0 - r * phi.cos())  # sum of r^k sin(k phi) / k, k >= 1
        if r >= _SERIES_BELOW:
            rest = (r * phi.sin() - delta) / r**2
        else:
            rest = torch.zeros_like(phi)
            for k in range(_SERIES_TERMS, 1, -1):
                rest -= r ** (k - 2) * (k * phi).sin() / k
        return ((phi + delta + rest) / math.pi).clamp(0.0, 1.0)

    def __repr__(self) -> str:
        if self.normalized:
            return f"MarchenkoPastur(ratio={self.ratio!r}, normalized=True)"
        return f"MarchenkoPastur(ratio={self.ratio!r}, variance={self.variance!r})"
