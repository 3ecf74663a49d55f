"""What the paper says of spectra, on random weights: n >= 1000 where it is about a limit."""

import pytest
import torch
from torch import nn

import lhkernels as lh

RATIOS = (0.5, 1.0, 2.0)


def kolmogorov_distance(S, law):
    x = torch.cat([S.eigenvalues, torch.linspace(0, law.support[1] * 1.1, 2000).double()])
    x = torch.cat([x, x - 1e-9]).clamp_min(0)  # on both sides of each jump
    away = x > S.zero_tolerance * 2 + 1e-7  # the law has an atom, or a singularity, at zero
    difference = (S.cdf(x) - law.cdf(x)).abs()[away]
    return max(float(difference.max()), abs(S.zero_fraction - law.atom))


def gaussian(n_in, n_out, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(n_in, n_out, bias=False, dtype=torch.float64)
    layer.weight.data.normal_(0, n_out**-0.5, generator=generator)
    return layer, generator


@pytest.mark.parametrize("ratio", RATIOS)
def test_gaussian_weights_follow_the_law(ratio):
    layer, _ = gaussian(1000, round(1000 * ratio), seed=round(10 * ratio))
    S = lh.spectrum(lh.LocalHessian(layer, torch.ones(2, 1000, dtype=torch.float64), "input"))
    assert S.method == "exact"
    assert kolmogorov_distance(S, lh.MarchenkoPastur(ratio)) < 0.01


@pytest.mark.parametrize("ratio", RATIOS)
def test_with_batch_norm_whatever_the_scale(ratio):
    layer, generator = gaussian(1000, round(1000 * ratio), seed=round(10 * ratio))
    x = torch.randn(4000, 1000, dtype=torch.float64, generator=generator)
    norm = nn.BatchNorm1d(layer.out_features, eps=1e-12, affine=False, dtype=torch.float64)
    spectra = []
    for scale in (1, 100):
        with torch.no_grad():
            layer.weight *= scale
        block = nn.Sequential(layer, norm)
        S = lh.spectrum(lh.LocalHessian(block, x, "input", approximate=True))
        assert kolmogorov_distance(S, lh.MarchenkoPastur(ratio, normalized=True)) < 0.01
        spectra.append(S.eigenvalues)
    torch.testing.assert_close(spectra[0], spectra[1], rtol=1e-6, atol=1e-9)


def test_orthonormal_weights_have_ones_and_zeros():
    layer = nn.Linear(60, 20, bias=False, dtype=torch.float64)
    nn.init.orthogonal_(layer.weight)
    S = lh.spectrum(lh.LocalHessian(layer, torch.ones(3, 60, dtype=torch.float64), "input"))
    assert S.zero_fraction == pytest.approx(2 / 3)
    assert S.condition_number == pytest.approx(1, abs=1e-12)


def test_diagonal_of_the_weight_s_hessian_under_batch_norm():
    """Remark 3, for the summed loss: E diag(H_w) = m / ||w||^2 where x is a batch norm's output."""
    generator = torch.Generator().manual_seed(3)
    x = nn.functional.batch_norm(
        torch.randn(4000, 50, dtype=torch.float64, generator=generator), None, None, training=True
    )
    layer, _ = gaussian(50, 30, seed=4)
    block = nn.Sequential(layer, nn.BatchNorm1d(30, eps=1e-12, affine=False, dtype=torch.float64))
    H = lh.LocalHessian(block, x, approximate=True)
    expected = len(x) * 50 / layer.weight.detach().square().sum(1)
    assert H.trace() == pytest.approx(float(expected.sum()), rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_a_skip_connection_improves_the_condition_number(seed):
    """Remark 1, with its premise: sigma_max(J) <= s < 1 and cond(J) > (1 + s)/(1 - s)."""
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(40, 40, dtype=torch.float64, generator=generator)
    J *= 0.4 / torch.linalg.matrix_norm(J, 2)
    Q = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=generator)).Q

    def condition(weight):
        layer = nn.Linear(40, 40, bias=False, dtype=torch.float64)
        layer.weight.data = weight
        H = lh.LocalHessian(layer, torch.ones(1, 40, dtype=torch.float64), "input")
        return lh.spectrum(H).condition_number ** 0.5

    bound = 1.4 / 0.6
    assert condition(J) > bound
    assert condition(torch.eye(40, dtype=torch.float64) + J) <= bound
    assert condition(Q + J) <= bound  # an orthogonal skip has the same bound
