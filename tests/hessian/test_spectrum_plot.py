"""The picture of a spectrum: what its bars and its curve say."""

import builtins

import pytest
import torch

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

from lhkernels.hessian.marchenko_pastur import MarchenkoPastur  # noqa: E402
from lhkernels.hessian.spectrum import spectrum  # noqa: E402
from lhkernels.hessian.spectrum_plot import curve  # noqa: E402


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def layer(c, n=200):
    W = torch.randn(int(c * n), n, dtype=torch.float64) / (c * n) ** 0.5
    return W.T @ W


def texts(ax):
    legend = [] if ax.get_legend() is None else ax.get_legend().get_texts()
    return " | ".join(t.get_text() for t in [*ax.texts, *legend])


@pytest.mark.parametrize("method", ["exact", "slq"])
@pytest.mark.parametrize("law", [None, MarchenkoPastur(0.5)])
def test_the_area_of_the_bars_is_the_nonzero_part(method, law):
    S = spectrum(layer(0.5), method, **({} if method == "exact" else {"probes": 20}))
    bars = S.histogram(law)
    assert not bars.log
    area = float((bars.heights * bars.edges.diff()).sum())
    assert area == pytest.approx(1 - S.zero_fraction, abs=2e-3)
    assert bars.edges[0] >= 0
    assert bars.edges[-1] > S.largest


def test_every_eigenvalue_is_in_a_bar_and_zero_in_none():
    values = torch.tensor([-3.0, -1.0, -1e-4, 0.0, 0.0, 1e-4, 2.0, 5.0])
    bars = spectrum(torch.diag(values)).histogram(bins=37)
    counts = bars.heights * bars.edges.diff() * len(values)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
    assert float(counts.sum()) == pytest.approx(6.0)
    around_zero = (bars.edges[:-1] <= 0) & (bars.edges[1:] >= 0)
    assert float(counts[around_zero].sum()) == pytest.approx(2.0)


def test_a_wide_range_gets_a_logarithmic_axis():
    values = torch.logspace(-9, 0, 90, dtype=torch.float64)
    S = spectrum(torch.diag(torch.cat([values, torch.zeros(10)])))
    bars = S.histogram()
    assert bars.log
    decades = bars.edges.log10().diff()
    assert float((bars.heights * decades).sum()) == pytest.approx(0.9)
    torch.testing.assert_close(decades, decades[:1].expand(len(decades)))
    ax = S.plot()
    assert ax.get_xscale() == "log"
    assert ax.get_ylabel() == "fraction per decade"
    assert "not resolved" not in texts(ax)
    assert S.plot(law=MarchenkoPastur(1.0)).get_xscale() == "linear"
    assert spectrum(torch.diag(values - 0.1)).histogram().log is False


def test_unresolved_small_eigenvalues_are_hatched():
    values = torch.logspace(-12, 0, 400, dtype=torch.float64)
    S = spectrum(torch.diag(values), "slq", probes=3, steps=15)
    assert "not resolved" in texts(S.plot())


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_the_law_is_drawn_over_the_bars(c, normalized):
    law = MarchenkoPastur(c, normalized=normalized)
    S = spectrum(layer(c) * law.mean)
    ax = S.plot(law=law)
    (line,) = ax.lines
    x, y = (torch.as_tensor(v) for v in line.get_data())
    assert float(torch.trapezoid(y, x)) == pytest.approx(min(1.0, c), abs=0.03)
    torch.testing.assert_close(y, law.pdf(x))
    bars = S.histogram(law)
    assert ax.get_ylim()[1] > float(bars.heights.max())
    assert ax.get_ylim()[1] < 20 * float(bars.heights.max())  # c = 1: not up to infinity
    assert "Marchenko-Pastur" in texts(ax)
    if c < 1:
        assert "zero: 50 % of 200" in texts(ax)
        assert "law: 50 %" in texts(ax)


def test_the_law_of_the_spectrum_is_the_default():
    S = spectrum(layer(0.5))
    assert not S.plot().lines
    S.law = MarchenkoPastur(0.5)
    assert len(S.plot().lines) == 1
    assert not S.plot(law=None).lines


def test_the_curve_on_a_logarithmic_axis_has_the_same_area():
    law = MarchenkoPastur(2.0)
    bars = spectrum(torch.diag(torch.logspace(-6, 0, 50))).histogram()
    x, y = curve(law, bars)
    assert float(torch.trapezoid(y, x.log10())) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0], [3.0], [0.0, 5.0], [1e-30, 2e-30], [-1.0, 4.0]]
)
def test_odd_spectra_can_be_drawn(values, tmp_path):
    ax = spectrum(torch.diag(torch.tensor(values, dtype=torch.float64))).plot()
    ax.figure.savefig(tmp_path / "spectrum.png")
    assert ("zero" in texts(ax)) == (0.0 in values)
    assert (tmp_path / "spectrum.png").stat().st_size > 1000


def test_given_axes_are_used():
    _, ax = pyplot.subplots()
    figures = pyplot.get_fignums()
    assert spectrum(torch.eye(3)).plot(ax) is ax
    assert pyplot.get_fignums() == figures


def test_bad_laws_and_a_missing_matplotlib(monkeypatch):
    S = spectrum(torch.eye(3))
    with pytest.raises(ValueError, match="law='gauss'"):
        S.plot(law="gauss")
    with pytest.raises(TypeError, match="law is a float"):
        S.plot(law=0.5)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lhkernels\[hessian\]"):
        S.plot()
