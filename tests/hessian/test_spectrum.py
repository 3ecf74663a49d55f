"""Spectra of matrices with known eigenvalues: exact, Lanczos, and stochastic quadrature."""

import math
from types import SimpleNamespace

import pytest
import torch
from rich.progress import Progress
from spectrum_cases import KNOWN, Blocks, Operator, RowOperator, linspace, with_eigenvalues
from torch import nn

from lhkernels.hessian import LocalHessian
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur
from lhkernels.hessian.slq import default_probes
from lhkernels.hessian.spectrum import spectrum

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("name", KNOWN)
def test_known_eigenvalues_exact(name):
    values = KNOWN[name].double()
    A = with_eigenvalues(values)
    largest = float(values.abs().max())
    for H in (A, Operator(A), RowOperator(A)):
        S = spectrum(H)
        assert S.method == "exact"
        torch.testing.assert_close(S.eigenvalues, values, rtol=0, atol=4e-15 * largest)
        assert ((S.eigenvalues - values).abs() <= S.errors).all()
        assert (S.eigenvalues == 0).sum() == (values == 0).sum()
        assert S.zero_fraction == pytest.approx(float((values == 0).double().mean()), abs=1e-15)
        assert float(S.weights.sum()) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("method", ["slq", "lanczos"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KNOWN)
def test_known_eigenvalues_by_lanczos(name, dtype, method):
    values = KNOWN[name].double()
    A = with_eigenvalues(values, dtype)
    S = spectrum(RowOperator(A), method)
    truth = torch.linalg.eigvalsh(A.double())
    nearest = (S.eigenvalues[:, None] - truth).abs().min(1).values
    assert (nearest <= S.errors).all()
    assert S.largest == pytest.approx(float(truth[-1]), abs=S.bounds.largest)
    assert S.smallest == pytest.approx(float(truth[0]), abs=S.bounds.smallest)
    assert S.smallest >= float(truth[0]) - S.zero_tolerance
    assert float(S.weights.sum()) == pytest.approx(1.0, abs=1e-14)
    assert S.eigenvalues.dtype == S.weights.dtype == torch.float64
    if method == "slq" and not (dtype == torch.float32 and name in ("condition 1e12", "outlier")):
        apart = 1e-5 * max(1.0, float(values.abs().max()))
        x = torch.cat([values - apart, values + apart]) if name != "condition 1e12" else values
        cdf = (values <= x[:, None]).double().mean(1)
        assert float((S.cdf(x) - cdf).abs().max()) < 0.03


def distance(S, law):
    x = torch.cat([law.quantile(linspace(1e-4, 1, 2001)), S.eigenvalues])
    x = torch.cat([x * (1 - 1e-9), x, x * (1 + 1e-9)])
    return float((S.cdf(x) - law.cdf(x)).abs().max())


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_kolmogorov_distance_to_the_marchenko_pastur_law(c):
    n, variance = 1000, 1.8
    W = torch.randn(int(c * n), n) * math.sqrt(variance / (c * n))
    H = W.T @ W
    law = MarchenkoPastur(c, variance)
    assert distance(spectrum(H), law) < 0.01
    S = spectrum(RowOperator(H), "slq")  # default probes and steps
    assert distance(S, law) < 0.01
    assert S.zero_fraction == pytest.approx(law.atom, abs=0.01)
    assert distance(S, MarchenkoPastur(c, variance * 1.2)) > 0.02

    rows = W / W.norm(dim=1, keepdim=True)
    exact = spectrum(Blocks((rows.double(), 3, True)))
    assert distance(exact, MarchenkoPastur(c, normalized=True)) < 0.01


def test_the_cdf_gains_from_half_weights():
    """Interpolated through half the weights it is some 1/steps^2 off; a staircase, 1/steps."""
    n, steps = 3000, 20
    values = torch.sin(linspace(0, math.pi / 2, n)) ** 2  # the arcsine law
    S = spectrum(Operator(torch.diag(values)), "slq", steps=steps, probes=1)
    x = linspace(0.05, 0.95, 500)
    truth = (values <= x[:, None]).double().mean(1)
    assert float((S.cdf(x) - truth).abs().max()) < 0.01
    staircase = (S.weights * (S.eigenvalues <= x[:, None])).sum(1)
    assert float((staircase - truth).abs().max()) > 0.02


def test_spectral_blocks():
    g = torch.Generator().manual_seed(5)
    symmetric = torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64)
    symmetric = symmetric + symmetric.mT
    wide = torch.randn(3, 2, 5, generator=g, dtype=torch.float64)
    tall = torch.randn(6, 3, generator=g, dtype=torch.float64)
    fourier = torch.randn(4, 2, 3, generator=g, dtype=torch.complex128)
    H = Blocks((symmetric, 2, False), (wide, 3, True), (tall, 1, True, None),
               (fourier, 1, True))  # fmt: skip
    expected = [torch.linalg.eigvalsh(symmetric).reshape(-1)] * 2
    expected += [torch.linalg.eigvalsh(wide.mT @ wide).reshape(-1)] * 3
    expected += [torch.linalg.eigvalsh(tall.mT @ tall)]
    expected += [torch.linalg.eigvalsh(fourier.mH @ fourier).reshape(-1)]
    values = torch.cat(expected).sort().values
    S = spectrum(H)
    assert S.dim == len(values) == 48 + 45 + 3 + 12
    assert S.zero_fraction == pytest.approx((27 + 4) / S.dim)  # the kernels of the wide factors
    x = linspace(-10, 40, 777)
    torch.testing.assert_close(S.cdf(x), (values <= x[:, None]).double().mean(1))
    for k in range(4):
        assert S.moment(k).value == pytest.approx(float((values**k).mean()))
    assert (S.smallest, S.largest) == pytest.approx((float(values[0]), float(values[-1])))


def test_factors_resolve_what_their_gram_matrix_does_not():
    B = with_eigenvalues(torch.logspace(-12, 0, 20, dtype=torch.float64))
    S = spectrum(Blocks((B, 1, True)))
    assert S.condition_number == pytest.approx(1e24, rel=0.05)
    assert spectrum(Blocks((B.T @ B, 1, False))).zero_fraction > 0.2
    S = spectrum(Blocks((torch.cat([B, torch.zeros(20, 3)], 1), 1, True)))
    assert S.zero_fraction == pytest.approx(3 / 23)


def test_the_law_of_the_blocks():
    B = torch.randn(5, 8, dtype=torch.float64)
    law, other = MarchenkoPastur(0.625, variance=2.0), MarchenkoPastur(0.625, normalized=True)
    assert spectrum(Blocks((B, 2, True, law), (B, 1, True, law))).law is law
    assert spectrum(Blocks((B, 2, True, law), (B, 1, True))).law is None
    assert spectrum(Blocks((B, 2, True, law), (B, 1, True, other))).law is None
    assert spectrum(torch.eye(3)).law is None


def test_a_linear_layer_brings_the_law_of_its_own_variance():
    layer = nn.Linear(24, 15, dtype=torch.float64)
    x = torch.randn(40, 24, dtype=torch.float64)
    S = spectrum(LocalHessian(layer, x, "input"))
    assert (S.law.ratio, S.law.normalized) == (15 / 24, False)
    assert S.law.mean == pytest.approx(S.moment(1).value)

    with_bn = nn.Sequential(layer, nn.BatchNorm1d(15, dtype=torch.float64))
    S = spectrum(LocalHessian(with_bn, x, "input", approximate=True))
    assert (S.law.ratio, S.law.normalized) == (15 / 24, True)
    assert spectrum(LocalHessian(with_bn, x, "input")).law is None


def test_blocks_that_do_not_add_up_or_are_not_finite():
    with pytest.raises(RuntimeError, match="6 of 7"):
        spectrum(Blocks((torch.eye(3).double(), 2, False), dim=7))
    with pytest.raises(ValueError, match="H is not finite"):
        spectrum(Blocks((torch.full((2, 2), torch.inf), 1, True)))


def test_auto_takes_what_is_affordable(monkeypatch):
    A = with_eigenvalues(linspace(0, 1, 30))
    monkeypatch.setattr("lhkernels.hessian.exact.AUTO_DIM", 20)
    S = spectrum(A)
    assert S.method == "slq"
    assert S.probes == default_probes(30) == 200
    assert spectrum(A, "exact").method == "exact"
    factor = Blocks((A, 1, True), matrix=A @ A)
    assert spectrum(factor).method == "exact"
    monkeypatch.setattr("lhkernels.hessian.exact.AUTO_WORK", 1e3)
    assert spectrum(factor).method == "slq"
    assert spectrum(factor, "exact").method == "exact"
    assert default_probes(10**7) == 8


def test_absurd_sizes_are_refused_with_their_bytes():
    huge = SimpleNamespace(shape=(10**6, 10**6), dtype=torch.float32, device="cpu")
    with pytest.raises(MemoryError, match=r"24,000,000,000,000 bytes .*method='slq'"):
        spectrum(huge, "exact")
    A = with_eigenvalues(linspace(0, 1, 50))
    with pytest.raises(MemoryError, match="a dense 50 x 50 matrix needs 60,000 bytes"):
        spectrum(A, "exact", memory_limit=50_000)
    assert spectrum(A, memory_limit=50_000).method == "slq"
    with pytest.raises(MemoryError, match="a block of 50 x 50"):
        spectrum(Blocks((A, 1, False)), "exact", memory_limit=50_000)


def test_seeds_and_the_global_generator():
    A = with_eigenvalues(linspace(0, 1, 40))
    state = torch.get_rng_state()
    one, two, other = (spectrum(A, "slq", probes=3, steps=5, seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.eigenvalues, two.eigenvalues)
    assert not torch.equal(one.eigenvalues, other.eigenvalues)


@pytest.mark.parametrize(
    ("H", "error", "message"),
    [
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), ValueError, r"not symmetric.*\(H \+ H.T\) / 2"),
        (torch.ones(2, 3), ValueError, r"shape \(2, 3\)"),
        (torch.ones(4), ValueError, r"shape \(4,\)"),
        (torch.ones(0, 0), ValueError, r"shape \(0, 0\)"),
        (torch.eye(3) / 0, ValueError, "not finite"),
        (torch.eye(3, dtype=torch.int64), TypeError, "float32 or float64"),
        (torch.eye(3, dtype=torch.bfloat16), TypeError, r"H\.double\(\)"),
        (torch.eye(3, dtype=torch.complex64), TypeError, "float32 or float64"),
        (torch.eye(3).to_sparse(), TypeError, "to_dense"),
        ([[1.0]], TypeError, "H is a list"),
    ],
)
def test_bad_operators(H, error, message):
    with pytest.raises(error, match=message):
        spectrum(H)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "power"}, "method='power'"),
        ({"probes": 0}, "probes=0"),
        ({"steps": 2.5}, r"steps=2\.5"),
        ({"memory_limit": -1}, "memory_limit=-1"),
        ({"seed": 1.0}, r"seed=1\.0"),
        ({"zero_tolerance": -1e-3}, r"zero_tolerance=-0\.001"),
        ({"zero_tolerance": math.nan}, "zero_tolerance=nan"),
        ({"distribution": "cauchy"}, "distribution='cauchy'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        spectrum(torch.eye(3), **options)


def test_products_without_symmetry_or_with_nan_are_found():
    with pytest.raises(ValueError, match="not symmetric"):
        spectrum(Operator(torch.tensor([[1.0, 2.0], [0.0, 1.0]])))
    with pytest.raises(ValueError, match="not finite"):
        spectrum(Operator(torch.eye(3) * torch.nan), "slq")


def test_a_tensor_may_require_a_gradient():
    A = torch.eye(4, requires_grad=True)
    for method in ("exact", "slq"):
        assert not spectrum(A * 2, method).eigenvalues.requires_grad


def test_progress_goes_to_stderr_and_counts_everything(capsys, monkeypatch):
    A = with_eigenvalues(linspace(0, 1, 40))
    plain = spectrum(A, "slq", probes=3)
    shown = spectrum(A, "slq", probes=3, progress=True)
    assert torch.equal(plain.eigenvalues, shown.eigenvalues)
    assert spectrum(A, "exact", progress=True).method == "exact"
    assert capsys.readouterr().out == ""

    done = []
    monkeypatch.setattr(Progress, "advance", lambda bar, task, count: done.append(count))
    spectrum(A, "slq", probes=3, steps=7, progress=True)
    assert done == 7 * [3]
    spectrum(Blocks((A, 2, True), (A, 1, False)), progress=True)
    assert done[7:] == [80, 40]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["exact", "slq", "lanczos"])
def test_on_a_gpu(method):
    A = with_eigenvalues(KNOWN["indefinite"])
    host, device = spectrum(A, method), spectrum(A.cuda(), method)
    assert device.eigenvalues.device.type == "cpu"
    assert device.largest == pytest.approx(host.largest, rel=1e-9)
    assert device.smallest == pytest.approx(host.smallest, rel=1e-9)
    assert device.moment(2).value == pytest.approx(host.moment(2).value, rel=1e-9)
    assert device.cdf(torch.ones(3, device="cuda")).is_cuda
