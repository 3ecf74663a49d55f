"""What is read off a spectrum: bounds, condition numbers, moments, distribution functions."""

import math
import re

import pytest
import torch
from spectrum_cases import KNOWN, Blocks, linspace, with_eigenvalues

from lhkernels.hessian.spectrum import spectrum

DTYPES = [torch.float32, torch.float64]


def test_condition_numbers():
    for method in ("exact", "slq"):
        S = spectrum(with_eigenvalues(KNOWN["condition 1e12"]), method)
        assert S.condition_number == pytest.approx(1e12, rel=0.02)
        assert S.zero_fraction == 0.0
        S = spectrum(with_eigenvalues(KNOWN["indefinite"]), method)
        assert S.condition_number == pytest.approx(14.0, rel=1e-9)
        assert S.smallest_nonzero == pytest.approx(0.5)
        S = spectrum(with_eigenvalues([-2.0, -0.1, 0.0, 3.0]), method)
        assert S.smallest_nonzero == pytest.approx(-0.1)
        assert (S.smallest, S.largest) == pytest.approx((-2.0, 3.0))
        S = spectrum(torch.zeros(4, 4), method)
        assert math.isnan(S.smallest_nonzero)
        assert math.isnan(S.condition_number)
        assert math.isnan(S.bounds.smallest_nonzero)
        assert S.zero_fraction == 1.0


def test_a_ritz_value_in_a_gap_is_not_the_smallest_eigenvalue():
    """Half zeros, a gap, a continuous part: one Ritz value per probe wanders through the gap."""
    A = with_eigenvalues(torch.cat([torch.zeros(100), linspace(1, 3, 300)]))
    S = spectrum(A, "slq", steps=20, probes=100)
    wandering = S.eigenvalues[(S.eigenvalues > 0) & (S.eigenvalues < 0.9)]
    assert S.smallest_nonzero > 0.95, wandering
    assert S.condition_number < 3.0 / 0.95
    assert S.zero_fraction == pytest.approx(0.25, abs=0.03)


def test_repeated_eigenvalues_leave_no_false_zeros():
    """After 27 distinct ones, rounding starts further Krylov spaces with copies of them."""
    A = with_eigenvalues(linspace(0.5, 5, 27).repeat(5))
    for dtype in DTYPES:
        S = spectrum(A.to(dtype), "slq", probes=40)
        assert S.zero_fraction == 0.0
        assert S.condition_number == pytest.approx(10.0, rel=1e-4)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_moments_agree_within_the_standard_error(dtype, distribution, seed):
    torch.manual_seed(100 + seed)
    A = torch.randn(90, 90, dtype=torch.float64)
    A = A @ torch.diag(torch.randn(90).double().exp()) @ A.T / 90 + torch.diag(torch.randn(90))
    A = ((A + A.T) / 2).to(dtype)
    values = torch.linalg.eigvalsh(A.double())
    S = spectrum(A, "slq", probes=60, steps=12, seed=seed, distribution=distribution)
    E = spectrum(A)
    for k in range(5):
        truth = float((values**k).mean())
        value, error = S.moment(k)
        assert 0 < error < 0.3 * float((values.abs() ** k).mean())
        assert abs(value - truth) <= 4 * error
        assert abs(E.moment(k).value - truth) <= E.moment(k).standard_error
        assert E.moment(k).standard_error > 0


def test_the_standard_error_is_the_spread_of_independent_runs():
    A = with_eigenvalues(linspace(-1, 2, 60))
    runs = [spectrum(A, "slq", probes=12, steps=6, seed=s).moment(2) for s in range(40)]
    spread = float(torch.tensor([run.value for run in runs]).std())
    assert spread == pytest.approx(sum(run.standard_error for run in runs) / 40, rel=0.4)
    single = [spectrum(A, "slq", probes=1, steps=6, seed=s).moment(2) for s in range(60)]
    spread = float(torch.tensor([run.value for run in single]).std())
    assert spread == pytest.approx(sum(run.standard_error for run in single) / 60, rel=0.4)


def test_an_error_bar_is_never_falsely_zero():
    """A diagonal matrix has no variance under +-1 probes: what is left is rounding."""
    d = torch.rand(50).double() + 0.1
    for dtype in DTYPES:
        S = spectrum(torch.diag(d.to(dtype)), "slq", probes=4)
        for k in (1, 2, 3):
            value, error = S.moment(k)
            truth = float((d.to(dtype).double() ** k).mean())
            assert 0 < error < 1e-4
            assert abs(value - truth) <= error


def test_moments_beyond_the_quadrature_are_refused():
    S = spectrum(with_eigenvalues(linspace(0, 1, 30)), "slq", probes=2, steps=3)
    S.moment(5)
    with pytest.raises(ValueError, match="k=6 needs 4 Lanczos steps"):
        S.moment(6)
    with pytest.raises(ValueError, match=r"k=1\.5"):
        S.moment(1.5)
    assert spectrum(torch.eye(9).double(), "slq", steps=1).moment(20).value == pytest.approx(1.0)


def test_zero_is_decided_by_the_dtype_or_by_the_argument():
    values = [1e-13, 1e-9, 1e-3, 1.0]
    A = torch.diag(torch.tensor(values, dtype=torch.float64))
    assert spectrum(A).zero_fraction == 0.0
    assert spectrum(A.float()).zero_fraction == 0.5
    assert spectrum(A.float(), zero_tolerance=0).zero_fraction == 0.0
    for method in ("exact", "slq"):
        S = spectrum(A, method, zero_tolerance=1e-2)
        assert S.zero_fraction == pytest.approx(0.75, abs=1e-12)
        assert S.zero_tolerance == 1e-2
        assert S.condition_number == pytest.approx(1.0)
        assert S.cdf(0.0) == pytest.approx(0.75, abs=1e-12)
    S = spectrum(Blocks((A, 1, True)), zero_tolerance=1e-7)
    assert S.zero_fraction == 0.5  # of the eigenvalues, the squares
    hidden = spectrum(torch.full((40, 40), 1 / 40.0))  # rank 1; tiny negative eigenvalues too
    assert hidden.zero_fraction == pytest.approx(39 / 40)
    assert hidden.smallest == 0.0


def test_cdf_quantile_and_density_fit_together():
    torch.manual_seed(3)
    bulk = torch.randn(200, dtype=torch.float64)
    A = with_eigenvalues(torch.cat([torch.zeros(50), bulk + bulk.sign() / 2]))
    for S in (spectrum(A), spectrum(A, "slq", probes=50, steps=60)):
        q = linspace(0, 1, 301)
        x = S.quantile(q)
        assert (x.diff() >= 0).all()
        assert (S.cdf(x + 1e-12) >= q - 1e-12).all()
        assert (S.cdf(x - 1e-7) <= q + 1e-6).all()
        negative = S.cdf(-1e-9)
        atom = (q > negative + 1e-9) & (q < negative + S.zero_fraction - 1e-9)
        assert atom.sum() > 50
        assert (x[atom] == 0).all()
        assert S.cdf([-100.0, 100.0]) == [0.0, 1.0]
        assert math.isnan(S.cdf(math.nan))
        grid = linspace(-8, 8, 4001)
        for width in (None, 0.05, 1.0):
            total = float(torch.trapezoid(S.density(grid, width), grid))
            assert total == pytest.approx(1 - S.zero_fraction, abs=1e-6)
        with pytest.raises(ValueError, match="width=-1"):
            S.density(0.0, width=-1)
        with pytest.raises(ValueError, match="quantile: q="):
            S.quantile(1.5)


def test_the_density_of_an_exact_spectrum_is_a_sum_of_gaussians():
    S = spectrum(torch.diag(torch.tensor([0.0, 0.0, 1.0, 2.5])))
    x = linspace(-1, 4, 50)
    h = 0.3
    truth = sum(torch.exp(-((x - m) ** 2) / (2 * h * h)) for m in (1.0, 2.5))
    torch.testing.assert_close(S.density(x, h), truth / 4 / (h * math.sqrt(2 * math.pi)))


def test_the_repr_says_how_and_what():
    text = repr(spectrum(torch.diag(torch.tensor([0.0, 1.0, 4.0, 8.0])), "slq", probes=3))
    assert re.search(r"dim=4, method='slq', probes=3, steps=4.*\[0, 8\].*25 % zero", text)
    assert "condition number 8)" in text
