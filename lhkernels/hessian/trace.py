"""The trace of a symmetric operator: exact, or from a few products with an error estimate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lhkernels.hessian.symmetric import SymmetricOperator

DEFAULT_PROBES = 60
EXACT_DIM = 256  # up to here "auto" multiplies by every unit vector
EXACT_CHUNK = 1 << 23  # elements of unit vectors at a time
METHODS = ("auto", "exact", "hutchinson", "hutch++")


class TraceEstimate(NamedTuple):
    """Result of :func:`estimate`.

    Attributes:
        value: the trace, or its unbiased estimate.
        standard_error: standard deviation of ``value`` as estimated from the spread of the
            probes, and at least the rounding error of ``value``; 0.0 where it is exact.
        method: ``"exact"``, ``"hutchinson"`` or ``"hutch++"``.
        probes: products with H that were used; 0 for a closed form.
    """

    value: float
    standard_error: float
    method: str
    probes: int


def estimate(
    H: SymmetricOperator, method: str = "auto", probes: int = DEFAULT_PROBES, seed: int = 0
) -> TraceEstimate:
    """Trace of a symmetric operator.

    ``"hutchinson"``: the mean of g^T H g over random signs g (Hutchinson, 1990). Its error is that
    of the off-diagonal entries, divided by the root of the number of probes.
    ``"hutch++"``: a third of the products finds a basis Q of H's dominant range, a third takes the
    trace on it exactly, the rest is Hutchinson on what is orthogonal to Q (Meyer, Musco, Musco,
    Woodruff, 2021). Far better where the spectrum decays.
    ``"exact"``: the closed form's own trace, or products with all unit vectors.
    ``"auto"``: exact where there is a closed form of the trace or H is small, else Hutch++.

    Args:
        H: a :class:`~lhkernels.LocalHessian`.
        method: one of the above.
        probes: products with H to spend, at least 2 (Hutch++: 4); not used by ``"exact"``.
        seed: of the signs. The global random state is not touched, and the signs don't depend on
            H's device.

    Raises:
        TypeError, ValueError: an unknown method, too few probes, a seed that is no integer.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    for name, number in (("probes", probes), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be an int, got {number!r}")
    if method in ("auto", "exact"):
        trace = H.known_trace()
        if trace is not None:
            return TraceEstimate(float(trace), 0.0, "exact", 0)
    if method == "auto":
        method = "exact" if H.dim <= max(EXACT_DIM, probes) else "hutch++"
    if method == "exact":
        value = 0.0
        for first, rows in H.matrix_rows(EXACT_CHUNK):
            value += float(rows.diagonal(offset=first).sum(dtype=torch.float64))
        return TraceEstimate(value, 0.0, "exact", H.dim)
    fewest = 4 if method == "hutch++" else 2
    if probes < fewest:
        raise ValueError(
            f"probes must be at least {fewest} for method={method!r}, got {probes}: the error "
            "is estimated from their spread"
        )
    generator = torch.Generator().manual_seed(seed)
    if method == "hutch++":
        value, error = _hutch_plus_plus(H, probes, generator)
    else:
        value, error = _hutchinson(_quadratic_forms(H, _signs(H, probes, generator)))
    return TraceEstimate(value, error, method, probes)


def _hutch_plus_plus(
    H: SymmetricOperator, probes: int, generator: torch.Generator
) -> tuple[float, float]:
    rank = min(probes // 3, H.dim)
    sketch = H.product_rows(_signs(H, rank, generator)).to(_wide(H.dtype))
    Q = torch.linalg.qr(sketch.T).Q.T  # orthonormal rows
    on_range = _quadratic_forms(H, Q)
    g = _signs(H, probes - 2 * rank, generator).to(Q.dtype)
    rest = _quadratic_forms(H, g - (g @ Q.T) @ Q)
    value, error = _hutchinson(rest)
    rounding = torch.finfo(H.dtype).eps * float(on_range.abs().sum())
    return float(on_range.sum()) + value, max(error, rounding)


def _hutchinson(forms: Tensor) -> tuple[float, float]:
    """Mean and standard error of independent quadratic forms."""
    error = float(forms.std()) / len(forms) ** 0.5
    rounding = torch.finfo(forms.dtype).eps * float(forms.abs().mean())
    return float(forms.mean()), max(error, rounding)


def _quadratic_forms(H: SymmetricOperator, rows: Tensor) -> Tensor:
    """v^T H v for every row v, in float32 or better."""
    products = H.product_rows(rows.to(H.dtype))
    wide = _wide(H.dtype)
    return (rows.to(wide) * products.to(wide)).sum(dim=1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _signs(H: SymmetricOperator, count: int, generator: torch.Generator) -> Tensor:
    """Rows of random signs, drawn on the CPU."""
    bits = torch.randint(0, 2, (count, H.dim), generator=generator, dtype=torch.int8, device="cpu")
    return (2 * bits - 1).to(device=H.device, dtype=H.dtype)
