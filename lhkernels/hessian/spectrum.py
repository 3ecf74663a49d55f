"""The spectrum of a symmetric operator: eigenvalues and weights, exact or estimated."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lhkernels.hessian import exact, slq
from lhkernels.hessian.lanczos import Ritz, check_operator, rows_of
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur, elementwise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("auto", "exact", "lanczos", "slq")
LANCZOS_STEPS = 300


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
    """The spectral distribution of a symmetric H (dim, dim); made by :func:`spectrum`.

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
        errors: (N,): an eigenvalue of H lies within this of each (see :class:`Bounds`).
        method: ``"exact"``, ``"slq"`` or ``"lanczos"``.
        dim: the dimension of H.
        zero_tolerance: up to here ``|eigenvalue|`` counts as zero (see :func:`spectrum`).
        probes, steps: of the Lanczos quadrature; 0 for exact ones.
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
        measure: slq.Measure,
        quadratures: list[Ritz] | None = None,
        rounding: float = 0.0,
        supported: Tensor | None = None,
        law: MarchenkoPastur | None = None,
    ) -> None:
        self.eigenvalues, self.weights, self.errors = eigenvalues, weights, errors
        self.method, self.dim, self.zero_tolerance = method, dim, zero_tolerance
        self.law = law
        self._supported = torch.ones_like(weights, dtype=torch.bool)
        if supported is not None:
            self._supported = supported
        self.probes = len(quadratures or ())
        self.steps = max((q.values.numel() for q in quadratures or ()), default=0)
        self._measure, self._quadratures, self._rounding = measure, quadratures or [], rounding

    @property
    def largest(self) -> float:
        """The largest eigenvalue (a lower bound of it, unless exact)."""
        return float(self.eigenvalues[-1])

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue, zeros and negative ones included (unless exact: an upper
        bound of it)."""
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
        """The part of the dim eigenvalues that are zero: ``1 - rank / dim``.

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
            outside = ~((t >= 0.0) & (t <= 1.0))
            if outside.any():
                raise ValueError(f"quantile: q={t[outside].flatten()[0].item()!r} not in [0, 1]")
            return self._measure.quantile(t.cpu()).to(t.device)

        return elementwise("q", q, at)

    def density(self, x: Any, width: float | None = None) -> Any:
        """The distribution of the non-zero eigenvalues, smoothed with a Gaussian.

        Its integral is ``1 - zero_fraction``, as that of :meth:`MarchenkoPastur.pdf`.

        Args:
            x: float, list, array or tensor.
            width: standard deviation of the Gaussian, > 0. None: Silverman's rule, ``0.9 *
                min(std, IQR / 1.34) * n^(-1/5)``, n the non-zero eigenvalues (or Ritz values of
                a probe); it is meant for smooth spectra on a linear scale.
        """
        if width is None:
            width = self.default_width()
        elif (
            isinstance(width, bool)
            or not isinstance(width, Real)
            or not 0 < float(width) < math.inf
        ):
            raise ValueError(f"density: width={width!r} is not finite and > 0; pass None, or a std")
        fixed = float(width)
        return elementwise("x", x, lambda t: self._measure.smoothed(t.cpu(), fixed).to(t.device))

    def default_width(self) -> float:
        """The width that :meth:`density` takes: Silverman's rule."""
        keep = self.eigenvalues != 0
        values, weights = self.eigenvalues[keep], self.weights[keep]
        if not values.numel():
            return 1.0
        weights = weights / weights.sum()
        mean = (weights * values).sum()
        spread = float((weights * (values - mean) ** 2).sum().sqrt())
        at = torch.searchsorted(weights.cumsum(0), torch.tensor([0.25, 0.75], dtype=weights.dtype))
        low, high = values[at.clamp(max=values.numel() - 1)].tolist()
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
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 0:
            raise ValueError(f"moment: k={k!r} is not a whole number >= 0")
        k = int(k)
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

    def plot(self, ax: Axes | None = None, law: MarchenkoPastur | str | None = "auto") -> Axes:
        """Histogram of the non-zero eigenvalues, with the Marchenko-Pastur law where it applies.

        Args:
            ax: matplotlib axes to draw on; None makes a new figure.
            law: the law to draw over it; "auto" is :attr:`law`, None draws none.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        from lhkernels.hessian.spectrum_plot import plot

        return plot(self, ax, law)

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


def spectrum(
    H: Any,
    method: str = "auto",
    *,
    probes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    distribution: str = "rademacher",
    zero_tolerance: float | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> Spectrum:
    """The spectrum of a symmetric H.

    ``"exact"``: all eigenvalues in float64, from the structure of H's closed form (singular values
    of factors, eigenvalues of Gram matrices, each with its multiplicity), else from the dense
    matrix. ``"slq"``: stochastic Lanczos quadrature, an estimate of the whole distribution.
    ``"lanczos"``: one probe, until the residuals of both extreme Ritz values are below ``sqrt(eps)
    * largest``. ``"auto"``: exact where the closed form allows it within some 2e12 operations, or
    dim <= 2000; else slq.

    Zero is ``|eigenvalue| <= zero_tolerance``; None takes ``4 sqrt(dim) * eps(H.dtype) * largest``
    (d in place of dim for the d x d blocks of a closed form): the size of the eigenvalues that
    rounding the entries or the products makes out of a zero. For factors (r x d) of a closed form,
    which resolve much smaller eigenvalues, it is decided on the *singular values* as
    ``torch.linalg.matrix_rank`` does: ``sigma <= max(r, d) * eps * largest sigma``. A converged
    Ritz value is also zero if it is nearer to 0 than its error.

    Args:
        H: a :class:`LocalHessian`, a dense symmetric tensor, or any object with ``shape``,
            ``dtype``, ``device`` and ``@``; float32 or float64.
        probes: of slq and lanczos; None: ``200_000 / dim``, at least 8 and at most 200 (a CDF good
            to 0.3 %), and 1 for lanczos.
        steps: Lanczos steps; None: 100, and at most 300 for lanczos. At most dim are done.
        seed: of the probes; the global random state is neither used nor changed.
        distribution: of the probes' entries, ``"rademacher"`` or ``"gaussian"``; the probes are
            scaled to length 1.
        memory_limit: bytes; for exact the largest workspace (default 4 GiB), for the others the
            Lanczos basis (default 1 GiB), see :func:`lhkernels.hessian.slq.quadrature`.
        progress: show a progress bar on stderr (with the package rich; else a warning).

    Example:
        >>> import torch, lhkernels as lh
        >>> S = lh.spectrum(torch.diag(torch.tensor([0.0, 1.0, 1.0, 4.0])))
        >>> S.largest, S.smallest_nonzero, S.condition_number, S.zero_fraction
        (4.0, 1.0, 4.0, 0.25)

    Raises:
        TypeError, ValueError: a bad argument; an H that is not square, symmetric (up to ``sqrt(eps)
            * largest entry``), finite, float32 or float64.
        MemoryError: ``"exact"`` of something too large, naming the bytes.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; pass one of {METHODS}")
    if distribution not in slq.DISTRIBUTIONS:
        raise ValueError(f"distribution={distribution!r}; pass one of {slq.DISTRIBUTIONS}")
    for name, value in (("probes", probes), ("steps", steps), ("memory_limit", memory_limit)):
        _check_count(name, value)
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed={seed!r} is not a whole number")
    _check_tolerance(zero_tolerance)
    dim = check_operator(H)
    with torch.no_grad():
        if method in ("auto", "exact"):
            found = _exact(H, dim, method, zero_tolerance, memory_limit, progress)
            if found is not None:
                return _of_eigenvalues(found, dim)
        krylov = "lanczos" if method == "lanczos" else "slq"
        count = probes or (1 if krylov == "lanczos" else slq.default_probes(dim))
        limit = steps or (LANCZOS_STEPS if krylov == "lanczos" else slq.STEPS)
        with _progress(progress, krylov, count * min(limit, dim)) as advance:
            quadratures = slq.quadrature(
                rows_of(H), dim, H.dtype, torch.device(H.device), probes=count, steps=limit,
                seed=int(seed), distribution=distribution, memory_limit=memory_limit,
                tolerance=torch.finfo(H.dtype).eps ** 0.5 if krylov == "lanczos" else None,
                advance=advance,
            )  # fmt: skip
    return _of_quadratures(quadratures, krylov, dim, H.dtype, zero_tolerance)


def _exact(
    H: Any,
    dim: int,
    method: str,
    zero_tolerance: float | None,
    memory_limit: int | None,
    progress: bool,
) -> exact.Eigenvalues | None:
    """All eigenvalues; None where ``method="auto"`` finds that too dear."""
    auto = method == "auto"
    spectral_blocks = getattr(getattr(H, "closed_form", None), "spectral_blocks", None)
    blocks = None if spectral_blocks is None else spectral_blocks()
    if blocks is not None:
        try:
            with _progress(progress, "exact", dim) as advance:
                found = exact.of_blocks(
                    blocks,
                    dim,
                    H.dtype,
                    zero_tolerance=zero_tolerance,
                    work_limit=exact.AUTO_WORK if auto else math.inf,
                    memory_limit=memory_limit,
                    advance=advance,
                )
        except MemoryError:
            if not auto:
                raise
            found = None
        if found is not None:
            return found
    needed = exact.dense_workspace(dim)
    if auto and (dim > exact.AUTO_DIM or needed > (memory_limit or exact.MEMORY)):
        return None
    exact.check_memory(needed, memory_limit, f"a dense {dim} x {dim} matrix")
    with _progress(progress, "dense", dim) as advance:
        matrix = exact.dense_matrix(H, dim, rows_of(H), advance)
    return exact.of_dense(matrix, zero_tolerance)


def _of_eigenvalues(found: exact.Eigenvalues, dim: int) -> Spectrum:
    hint, law = found.law, None
    if hint is not None:
        variance = hint.variance
        if variance is None and not hint.normalized:
            variance = float((found.values * found.weights).sum())  # the law's mean
        if hint.normalized or variance > 0:
            law = MarchenkoPastur(hint.ratio, variance, hint.normalized)
    return Spectrum(
        found.values,
        found.weights,
        found.errors,
        method="exact",
        dim=dim,
        zero_tolerance=found.zero_tolerance,
        measure=slq.Measure.of_jumps(found.values, found.weights),
        rounding=float(found.errors.max()),
        law=law,
    )


def _of_quadratures(
    quadratures: list[Ritz], method: str, dim: int, dtype: torch.dtype, tolerance: float | None
) -> Spectrum:
    largest = max(float(q.values.abs().max()) for q in quadratures)
    rounding = exact.relative_rounding(dim, dtype) * largest
    zeroed = [slq.set_zeros(q, rounding, tolerance) for q in quadratures]
    values = torch.cat([q.values for q in zeroed])
    weights = torch.cat([q.weights for q in zeroed]) / len(zeroed)
    errors = torch.cat([q.residuals for q in zeroed]) + rounding
    supported = (weights * len(zeroed) * dim > 0.01) | (errors < 0.5 * values.abs())
    order = values.argsort(stable=True)
    values, weights, errors = values[order], weights[order], errors[order]
    floor = 0.0 if float(values[0]) >= 0.0 else -math.inf
    return Spectrum(
        values,
        weights / weights.sum(),
        errors,
        method=method,
        dim=dim,
        zero_tolerance=rounding if tolerance is None else tolerance,
        measure=slq.Measure.of_quadratures(zeroed, rounding, floor),
        quadratures=quadratures,
        rounding=rounding,
        supported=supported[order],
    )


def _check_count(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} is not a whole number >= 1; pass None for the default")


def _check_tolerance(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(
            f"zero_tolerance={value!r} is not finite and >= 0; pass None, 0, or such as 1e-8"
        )


@contextmanager
def _progress(show: bool, what: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A function to call with the number of products done; None where nothing is shown."""
    if not show:
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        warnings.warn("progress: the package rich is missing: pip install rich", stacklevel=4)
        yield None
        return
    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(f"spectrum: {what}", total=total)
        yield lambda done: bar.advance(task, done)
