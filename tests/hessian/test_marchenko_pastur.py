"""The law against quadrature of its density, and against the eigenvalues of random matrices."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from lhkernels.hessian.marchenko_pastur import MarchenkoPastur

RATIOS = [1e-5, 1e-3, 0.1, 0.5, 0.99, 1.0, 1.01, 2.0, 37.0, 1e4]
LAWS = [
    *(MarchenkoPastur(c, variance=v) for c in RATIOS for v in (1.7, 1e-8)),
    *(MarchenkoPastur(c, normalized=True) for c in RATIOS),
]


def integral(law, stop):
    """Of ``law.pdf`` from the lower end to ``stop``; the substitution removes the square roots."""
    low, high = law.support

    def integrand(angle):
        t = low + (high - low) * math.sin(angle / 2) ** 2
        return law.pdf(t) * (high - low) / 2 * math.sin(angle)

    end = 2 * math.asin(math.sqrt((stop - low) / (high - low)))
    return quad(integrand, 1e-12, end, epsabs=1e-13, epsrel=1e-12, limit=300)[0]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_the_cdf_is_the_integral_of_the_density(law):
    low, high = law.support
    for part in (0.02, 0.3, 0.7, 0.999):
        x = low + part * (high - low)
        assert law.cdf(x) == pytest.approx(law.atom + integral(law, x), abs=1e-10)
    assert integral(law, high) == pytest.approx(min(1.0, law.ratio), abs=1e-10)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_quantile_inverts_the_cdf(law):
    q = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    x = law.quantile(q)
    assert (x.diff() >= 0).all()
    torch.testing.assert_close(law.cdf(x), q.clamp(min=law.atom), rtol=0.0, atol=1e-11)
    assert (x[q <= law.atom] == 0).all() or law.atom == 0
    assert law.quantile(1.0) == law.support.high


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_support_and_tails(law):
    low, high = law.support
    assert 0 <= low < high
    assert law.cdf([-1.0, high, 2 * high, math.inf, -math.inf]) == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert law.cdf(0.0) == pytest.approx(law.atom, abs=1e-12)
    assert law.pdf([-1.0, 1.01 * high, 0.99 * low if low > 0 else -0.1]) == [0.0, 0.0, 0.0]
    assert math.isnan(law.pdf(math.nan))
    assert math.isnan(law.cdf(math.nan))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    ("c", "orders"), [(0.3, range(1, 5)), (1.0, range(1, 5)), (2.5, range(1, 5)), (1e-3, [2, 90])]
)
def test_moments(c, orders, normalized):
    law = MarchenkoPastur(c, variance=0.7, normalized=normalized)
    angles = torch.linspace(0.0, math.pi, 20001, dtype=torch.float64)
    low, high = law.support
    t = low + (high - low) * torch.sin(angles / 2) ** 2
    for k in orders:
        step = law.pdf(t[1:]) * t[1:] ** k * (high - low) / 2 * torch.sin(angles[1:])
        numeric = float(torch.trapezoid(step, angles[1:]))
        assert law.moment(k) == pytest.approx(numeric, rel=1e-6)
    assert law.moment(0) == 1.0
    assert law.moment(1) == pytest.approx(law.mean)


def test_moments_whose_terms_leave_a_double_s_range():
    law = MarchenkoPastur(1e-3, normalized=True)
    numeric, _ = quad(lambda t: law.pdf(t) * t**400, *law.support, epsrel=1e-10, limit=200)
    assert law.moment(400) == pytest.approx(numeric, rel=1e-7)
    assert MarchenkoPastur(1e-3).moment(400) == math.inf  # 10^1200 and more
    assert MarchenkoPastur(0.3, variance=1e200).moment(2) == math.inf
    assert MarchenkoPastur(0.3, variance=1e-200).moment(2) == 0.0


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_kolmogorov_distance_to_random_layers(c):
    n = 1000
    W = torch.randn(int(c * n), n, dtype=torch.float64)
    rank = torch.arange(1, n + 1) / n

    def distance(values, law):
        cdf = law.cdf(values.sort().values.clamp(min=0) + 1e-11)
        return float(torch.maximum((cdf - rank).abs(), (cdf - rank + 1 / n).abs())[cut:].max())

    cut = max(0, n - W.shape[0])  # the zeros: compared by the atom
    variance = 2.3
    values = torch.linalg.eigvalsh(W.T @ W) * variance / W.shape[0]
    assert distance(values, MarchenkoPastur(c, variance)) < 0.01
    assert MarchenkoPastur(c, variance).atom == cut / n

    rows = 7.0 * W / (7.0 * W).norm(dim=1, keepdim=True)  # (19): their size has no influence
    values = torch.linalg.eigvalsh(rows.T @ rows)
    assert distance(values, MarchenkoPastur(c, normalized=True)) < 0.01
    assert distance(values, MarchenkoPastur(c, variance)) > 0.05


def test_the_density_is_the_one_in_the_paper():
    c, variance, t = 0.6, 1.3, 2.0
    high, low = (variance * (1 + s * math.sqrt(c)) ** 2 / c for s in (1, -1))
    expected = c / (2 * math.pi * variance) * math.sqrt((high - t) * (t - low)) / t
    assert MarchenkoPastur(c, variance).pdf(t) == pytest.approx(expected, rel=1e-13)
    high, low = ((1 + s * math.sqrt(c)) ** 2 for s in (1, -1))
    expected = math.sqrt((high - t) * (t - low)) / (2 * math.pi * t)
    assert MarchenkoPastur(c, normalized=True).pdf(t) == pytest.approx(expected, rel=1e-13)


def test_square_layers_have_a_density_that_diverges_at_zero():
    law = MarchenkoPastur(1.0)
    assert law.pdf(0.0) == math.inf
    assert law.pdf(1e-12) == pytest.approx(1e6 / math.pi, rel=1e-9)
    assert law.cdf(1e-12) == pytest.approx(2e-6 / math.pi, rel=1e-6)
    assert law.support == (0.0, 4.0)


def test_variance_is_irrelevant_when_normalized():
    assert MarchenkoPastur(0.5, variance=1e6, normalized=True).cdf(1.0) == MarchenkoPastur(
        0.5, variance=None, normalized=True
    ).cdf(1.0)


def test_the_result_is_of_the_kind_of_the_argument():
    law = MarchenkoPastur(0.5)
    for method in (law.pdf, law.cdf, law.quantile):
        value = method(0.7)
        assert type(value) is float
        assert type(method(1)) is float
        assert method([0.7, 0.7]) == [value, value]
        assert method(((0.7,), (0.7,))) == ([value], [value])
        array = method(np.full((2, 3), 0.7, dtype=np.float32))
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float32
        assert array == pytest.approx(np.full((2, 3), value), rel=1e-6)
        assert method(np.array(1)).dtype == np.float64
        tensor = torch.full((4, 6), 0.7, dtype=torch.float32, requires_grad=True)[:, ::2]
        result = method(tensor)
        assert result.shape == (4, 3)
        assert result.dtype == torch.float32
        assert float(result[2, 1]) == pytest.approx(value, rel=1e-6)
        assert method(torch.tensor([0, 1])).dtype == torch.float32
        assert method(torch.empty(0)).shape == (0,)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
def test_bad_parameters_name_themselves(bad):
    with pytest.raises(ValueError, match=r"ratio=.*n_out / n_in"):
        MarchenkoPastur(bad)
    with pytest.raises(ValueError, match="variance="):
        MarchenkoPastur(1.0, variance=bad)


def test_bad_types():
    with pytest.raises(TypeError, match="ratio='1'"):
        MarchenkoPastur("1")
    with pytest.raises(TypeError, match="variance=None"):
        MarchenkoPastur(1.0, variance=None)
    law = MarchenkoPastur(1.0)
    with pytest.raises(TypeError, match="complex"):
        law.pdf(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="x is a str"):
        law.cdf("1.0")
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="outside"):
            law.quantile(q)
    with pytest.raises(ValueError, match="k=-1"):
        law.moment(-1)
