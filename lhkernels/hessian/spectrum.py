"""The spectrum of a symmetric operator, exact or estimated."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from lhkernels.hessian import exact, slq
from lhkernels.hessian.distribution import Spectrum
from lhkernels.hessian.lanczos import Ritz
from lhkernels.hessian.symmetric import SpectralBlock, SymmetricOperator, as_operator

METHODS = ("auto", "exact", "lanczos", "slq")
LANCZOS_STEPS = 300


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
        progress: show a progress bar on stderr.

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
    operator = as_operator(H)
    with torch.no_grad():
        if method in ("auto", "exact"):
            found = _exact(operator, method == "auto", zero_tolerance, memory_limit, progress)
            if found is not None:
                return found
        krylov = "lanczos" if method == "lanczos" else "slq"
        dim, dtype = operator.dim, operator.dtype
        count = probes or (1 if krylov == "lanczos" else slq.default_probes(dim))
        limit = steps or (LANCZOS_STEPS if krylov == "lanczos" else slq.STEPS)
        with _progress(progress, krylov, count * min(limit, dim)) as advance:

            def rows(vectors: Tensor) -> Tensor:
                advance(len(vectors))
                return operator.product_rows(vectors)

            quadratures = slq.quadrature(
                rows, dim, dtype, operator.device, probes=count, steps=limit,
                seed=int(seed), distribution=distribution, memory_limit=memory_limit,
                tolerance=torch.finfo(dtype).eps ** 0.5 if krylov == "lanczos" else None,
            )  # fmt: skip
    return _of_quadratures(quadratures, krylov, dim, dtype, zero_tolerance)


def _exact(
    H: SymmetricOperator,
    auto: bool,
    zero_tolerance: float | None,
    memory_limit: int | None,
    progress: bool,
) -> Spectrum | None:
    """From all eigenvalues; None where ``method="auto"`` finds that too dear."""
    blocks = H.spectral_blocks()
    if blocks is not None:
        with _progress(progress, "exact", H.dim) as advance:

            def counted() -> Iterator[SpectralBlock]:
                for block in blocks:
                    yield block
                    advance(block.dim)

            try:
                found = exact.of_blocks(
                    counted(),
                    H.dim,
                    H.dtype,
                    zero_tolerance=zero_tolerance,
                    work_limit=exact.AUTO_WORK if auto else math.inf,
                    memory_limit=memory_limit,
                )
            except MemoryError:
                if not auto:
                    raise
                found = None
        if found is not None:
            return found
    needed = exact.dense_workspace(H.dim)
    if auto and (H.dim > exact.AUTO_DIM or needed > (memory_limit or exact.MEMORY)):
        return None
    with _progress(progress, "dense", None):
        return exact.of_dense(H, zero_tolerance, memory_limit)


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
        rounding=rounding,
        quadratures=quadratures,
        measure=slq.Measure.of_quadratures(zeroed, rounding, floor),
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
def _progress(show: bool, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if it is to be shown; a function to call with the rows or products done."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(f"spectrum: {what}", total=total)
        yield lambda done: bar.advance(task, done)
