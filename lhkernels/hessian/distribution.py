"""A spectral distribution: eigenvalues and weights, and what is read off them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lhkernels.hessian import slq
from lhkernels.hessian.arguments import elementwise, positive, shares, whole
from lhkernels.hessian.lanczos import Ritz
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur
from lhkernels.hessian.spectrum_plot import Bars, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOG_RANGE = 100.0  # 95 % quantile over 5 % quantile from which a logarithmic axis is taken
_DECADES = 14.0  # a logarithmic axis goes no further down than this below the largest


class Moment(NamedTuple):
    """``trace(H^k) / dim``, and the standard deviation of that estimate."""

    value: float
    standard_error: float


class Bounds(NamedTuple):
    """An eigenvalue of H lies within so much of ``S.largest``, ``S.smallest``, and so on.

    For ``"lanczos"`` and ``"slq"``: the residual norm of the Ritz vector plus the rounding error
    of the products. It does not say that there is no eigenvalue further out.
    """

    largest: float
    smallest: float
    smallest_nonzero: float


class Spectrum:
    """The spectral distribution of a symmetric H (dim, dim); made by :func:`.spectrum`.

    ========== ==================================================================================
    method     ``eigenvalues`` and ``weights``
    ========== ==================================================================================
    exact      all eigenvalues, multiplicity / dim
    slq        Ritz values of all probes, quadrature weights / probes: their moments are unbiased
               estimates of those of H; single ones are eigenvalues only where ``errors`` is small
    lanczos    the same from one probe, with the extreme eigenvalues converged
    ========== ==================================================================================

    Attributes:
        eigenvalues: (N,), ascending, float64, on the CPU. What counts as zero is exactly 0.
        weights: (N,), sum 1.
        errors: (N,): an eigenvalue of H lies within this of each (see :class:`.Bounds`).
        method: ``"exact"``, ``"slq"`` or ``"lanczos"``.
        dim: the dimension of H.
        zero_tolerance: up to here ``|eigenvalue|`` counts as zero (see :func:`.spectrum`).
        probes: of the Lanczos quadrature; 0 for exact ones.
        steps: the same.
        law: the Marchenko-Pastur law that a random weight would have, where known, or None.
    """

    def __init__(
        self,
        eigenvalues: Tensor,
        weights: Tensor,
        errors: Tensor,
        *,
        method: str,
        dim: int,
        zero_tolerance: float,
        rounding: float,
        law: MarchenkoPastur | None = None,
        quadratures: Sequence[Ritz] = (),
        measure: slq.Measure | None = None,
        supported: Tensor | None = None,
    ) -> None:
        self.eigenvalues, self.weights, self.errors = eigenvalues, weights, errors
        self.method, self.dim, self.zero_tolerance = method, dim, zero_tolerance
        self.law = law
        self.probes = len(quadratures)
        self.steps = max((q.values.numel() for q in quadratures), default=0)
        self._quadratures, self._rounding = quadratures, rounding
        self._measure = measure or slq.Measure.of_jumps(eigenvalues, weights)
        self._supported = weights >= 0 if supported is None else supported

    @property
    def largest(self) -> float:
        """The largest eigenvalue (a lower bound of it, unless exact)."""
        return float(self.eigenvalues[-1])

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue, zeros and negative ones included (an upper bound of it,
        unless exact)."""
        return float(self.eigenvalues[0])

    @property
    def smallest_nonzero(self) -> float:
        """The eigenvalue closest to 0 that is not zero, with its sign; NaN if all are zero.

        Unless exact, Ritz values without support are left out: those passing through a gap of the
        spectrum have next to no weight (< 1 % of an eigenvalue's) and a large error (> 50 %).
        """
        i = self._smallest_nonzero_index()
        return math.nan if i is None else float(self.eigenvalues[i])

    @property
    def condition_number(self) -> float:
        """Largest over smallest ``|eigenvalue|`` of the non-zero ones; NaN if all are zero.

        For an indefinite H (full Hessians) as well. Unless exact, it is an estimate from the
        Ritz values: at most the true one for a definite H, and for a singular H only as good as
        ``bounds.smallest_nonzero``.
        """
        return float(self.eigenvalues.abs().max()) / abs(self.smallest_nonzero)

    @property
    def zero_fraction(self) -> float:
        """The part of the dim eigenvalues that are zero, ``1 - rank / dim``.

        Unless exact, zeros show once their Ritz value has converged: soon where a gap sets them
        apart, late (more steps) where the other eigenvalues come close on both sides.
        """
        return float(self.weights[self.eigenvalues == 0].sum().clamp(0.0, 1.0))

    @property
    def bounds(self) -> Bounds:
        """Error bounds of the extreme eigenvalues."""
        i = self._smallest_nonzero_index()
        zero = math.nan if i is None else float(self.errors[i])
        return Bounds(float(self.errors[-1]), float(self.errors[0]), zero)

    def cdf(self, x: Any) -> Any:
        """The part of the eigenvalues that are ``<= x``: float, list, array or tensor, likewise.

        Jumps at eigenvalues. Unless exact, those that the Lanczos process has not resolved are
        interpolated: half a node's weight at the node, linear between nodes.
        """
        return elementwise("x", x, lambda t: self._measure.cdf(t.cpu()).to(t.device))

    def quantile(self, q: Any) -> Any:
        """The smallest x with ``cdf(x) >= q``, for q in [0, 1]."""

        def at(t: Tensor) -> Tensor:
            return self._measure.quantile(shares("quantile: q", t).cpu()).to(t.device)

        return elementwise("q", q, at)

    def density(self, x: Any, width: float | None = None) -> Any:
        """The distribution of the non-zero eigenvalues, smoothed with a Gaussian.

        Its integral is ``1 - zero_fraction``, as that of :meth:`.MarchenkoPastur.pdf`.

        Args:
            x: float, list, array or tensor.
            width: standard deviation of the Gaussian, > 0. None: Silverman's rule, ``0.9 *
                min(std, IQR / 1.34) * n^(-1/5)``, n the non-zero eigenvalues (or Ritz values of
                a probe); it is meant for smooth spectra on a linear scale.
        """
        if width is None:
            width = self.default_width()
        std = positive("density: width", width, "pass None, or a standard deviation")
        return elementwise("x", x, lambda t: self._measure.smoothed(t.cpu(), std).to(t.device))

    def default_width(self) -> float:
        """The width that :meth:`density` takes: Silverman's rule."""
        values, weights = self._nonzero()
        if not values.numel():
            return 1.0
        mean = (weights * values).sum()
        spread = float((weights * (values - mean) ** 2).sum().sqrt())
        low, high = _quantiles(values, weights, 0.25, 0.75)
        if high > low:
            spread = min(spread, (high - low) / 1.34)
        count = values.numel() / max(1, self.probes)
        largest = float(values.abs().max())
        return max(0.9 * spread * count**-0.2, 1e-3 * largest)

    def moment(self, k: int) -> Moment:
        """``trace(H^k) / dim`` with its standard error.

        The error is that of the mean over the probes (see :func:`lhkernels.hessian.slq.moment`),
        never below the rounding error of the products. Exact spectra have that alone.

        Raises:
            ValueError: a ``k`` that is not a whole number >= 0, or beyond ``2 * steps - 1``, up to
                which the quadrature of a probe is exact.
        """
        k = whole("moment: k", k, 0, "pass 0, 1, 2 ...")
        if k == 0:
            return Moment(1.0, torch.finfo(torch.float64).eps)
        if k > 2 * self.steps - 1 and not all(q.exhausted for q in self._quadratures):
            raise ValueError(
                f"moment: k={k} needs {k // 2 + 1} Lanczos steps, but there were {self.steps}; "
                f"pass steps={k // 2 + 1}"
            )
        x, w = self.eigenvalues, self.weights
        size = float((w * x.abs() ** k).sum())
        slope = k * float((w * x.abs() ** max(k - 1, 0)).sum())
        floor = self._rounding * slope + torch.finfo(torch.float64).eps * size
        if not self._quadratures:
            return Moment(float((w * x**k).sum()), floor)
        value, error = slq.moment(self._quadratures, self.dim, k)
        return Moment(value, math.hypot(error, floor))

    def histogram(self, law: MarchenkoPastur | None = None, bins: int = 50) -> Bars | None:
        """Bars of equal width, from the CDF; None for a spectrum of zeros only.

        The axis is logarithmic where all eigenvalues are >= 0, no ``law`` is to be drawn over it,
        and the 95 % quantile of the non-zero ones is more than 100 times the 5 % quantile.
        """
        values, weights = self._nonzero()
        if not values.numel():
            return None
        low, high = float(values[0]), float(values[-1])
        near_low, near_high = _quantiles(values, weights, 0.05, 0.95)
        log = law is None and low > 0 and near_high / near_low > _LOG_RANGE
        if log:
            low = max(self.smallest_nonzero, high / 10.0**_DECADES)
            start, stop = math.log10(low) - 0.02, math.log10(high) + 0.02
            edges = torch.logspace(start, stop, bins + 1, dtype=torch.float64)
            widths = edges.log10().diff()
        else:
            if law is not None:
                low, high = min(low, law.support.low), max(high, law.support.high)
            margin = 0.01 * (high - low) if high > low else 0.05 * abs(high)
            start = 0.0 if 0.0 <= low < 0.1 * high else low - margin
            edges = torch.linspace(start, high + margin, bins + 1, dtype=torch.float64)
            widths = edges.diff()
        mass = self.cdf(edges).diff()
        # A bar is the interval (left, right]: that with zero in it loses the atom.
        mass[(edges[:-1] < 0) & (edges[1:] >= 0)] -= self.zero_fraction
        return Bars(edges, mass.clamp(min=0.0) / widths, log)

    def plot(self, ax: Axes | None = None, law: MarchenkoPastur | str | None = "auto") -> Axes:
        """Histogram of the non-zero eigenvalues, with the Marchenko-Pastur law where it applies.

        Args:
            ax: matplotlib axes to draw on; None makes a new figure.
            law: the law to draw over it; "auto" is ``S.law``, None draws none.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        if isinstance(law, str):
            if law != "auto":
                raise ValueError(f"plot: law={law!r}; pass 'auto', None or a MarchenkoPastur")
            law = self.law
        elif law is not None and not isinstance(law, MarchenkoPastur):
            raise TypeError(f"plot: law is a {type(law).__name__}; pass a MarchenkoPastur or None")
        size = self.eigenvalues.abs()
        unresolved = self.eigenvalues[(size > 0) & (self.errors > size)]
        bars = self.histogram(law)
        return draw(ax, bars, law, self.method, unresolved, self.zero_fraction, self.dim)

    def _nonzero(self) -> tuple[Tensor, Tensor]:
        """The non-zero eigenvalues, and weights that sum to 1."""
        keep = self.eigenvalues != 0
        return self.eigenvalues[keep], self.weights[keep] / self.weights[keep].sum()

    def _smallest_nonzero_index(self) -> int | None:
        size = self.eigenvalues.abs()
        usable = (size > 0) & self._supported
        size = torch.where(usable, size, torch.full_like(size, math.inf))
        i = int(size.argmin())
        return i if math.isfinite(float(size[i])) else None

    def __repr__(self) -> str:
        how = f", probes={self.probes}, steps={self.steps}" if self.probes else ""
        return (
            f"Spectrum(dim={self.dim}, method={self.method!r}{how}, eigenvalues in "
            f"[{self.smallest:.6g}, {self.largest:.6g}], {100 * self.zero_fraction:.4g} % zero "
            f"(|x| <= {self.zero_tolerance:.3g}), condition number {self.condition_number:.6g})"
        )


def _quantiles(values: Tensor, weights: Tensor, *parts: float) -> list[float]:
    """Of ascending values whose weights sum to 1."""
    at = torch.searchsorted(weights.cumsum(0), torch.tensor(parts, dtype=weights.dtype))
    return values[at.clamp(max=values.numel() - 1)].tolist()
