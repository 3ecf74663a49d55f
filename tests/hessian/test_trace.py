"""Trace estimates: exact values, unbiased, honest about their error, reproducible."""

import math

import hessian_cases as cases
import pytest
import torch
from spectrum_cases import RowOperator, with_eigenvalues
from torch import nn

import lhkernels as lh
from lhkernels.hessian import trace


def rotated(values):
    """A matrix with these eigenvalues."""
    torch.manual_seed(0)
    return RowOperator(with_eigenvalues(values))


DECAYING = torch.arange(1, 151, dtype=torch.float64) ** -2.0
FLAT = torch.linspace(-1, 1, 150, dtype=torch.float64)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize(
    "values", [DECAYING, FLAT, FLAT + 1], ids=["decaying", "indefinite", "flat"]
)
def test_the_error_estimate_is_honest(method, values):
    H = rotated(values)
    exact = float(values.sum())
    scores = []
    for seed in range(60):
        found = trace.estimate(H, method, probes=45, seed=seed)
        scores.append((found.value - exact) / found.standard_error)
    scores = torch.tensor(scores)
    assert scores.abs().max() < 5
    assert abs(scores.mean()) < 4 / math.sqrt(60)  # unbiased
    assert 0.6 < scores.std() < 1.6  # neither boasting nor timid


def test_hutch_plus_plus_wins_on_a_decaying_spectrum():
    H = rotated(DECAYING)
    exact = float(DECAYING.sum())
    errors = {}
    for method in ("hutchinson", "hutch++"):
        found = [trace.estimate(H, method, 45, seed).value - exact for seed in range(20)]
        errors[method] = torch.tensor(found).square().mean().sqrt()
    assert errors["hutch++"] < errors["hutchinson"] / 5


@pytest.mark.parametrize(
    ("method", "probes"), [("hutchinson", 11), ("hutch++", 4), ("hutch++", 47)]
)
def test_probes_are_the_products_spent(method, probes):
    H = rotated(FLAT)
    assert trace.estimate(H, method, probes).probes == probes == H.products


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_small_matrices(dim):
    values = torch.rand(dim, dtype=torch.float64) + 1
    H = rotated(values)
    for method in ("auto", "exact", "hutchinson", "hutch++"):
        found = trace.estimate(H, method)
        assert abs(found.value - values.sum()) <= 5 * found.standard_error + 1e-12
    assert trace.estimate(H).method == "exact"
    assert trace.estimate(H).standard_error == 0


def test_low_rank_and_zero_matrices_are_found_to_rounding():
    values = torch.zeros(150, dtype=torch.float64)
    values[:4] = torch.tensor([5.0, -3.0, 2.0, 1.0])
    found = trace.estimate(rotated(values), "hutch++", 30)
    assert abs(found.value - 5) < 1e-10
    assert 4.9 * 2**-52 <= found.standard_error < 1e-10
    found = trace.estimate(rotated(0 * values), "hutch++", 30)
    assert (found.value, found.standard_error) == (0, 0)


def test_the_error_is_at_least_that_of_rounding():
    values = torch.rand(300, dtype=torch.float64)
    found = trace.estimate(RowOperator(torch.diag(values)), "hutchinson", 5)  # no spread at all
    assert 0 < found.standard_error < 1e-12
    assert abs(found.value - math.fsum(values.tolist())) <= 5 * found.standard_error


def test_seeds_are_reproducible_and_the_global_random_state_is_untouched():
    H = rotated(FLAT)
    rng = torch.get_rng_state()
    first = trace.estimate(H, "hutch++", 30, seed=3)
    assert torch.equal(torch.get_rng_state(), rng)
    torch.manual_seed(5)
    assert trace.estimate(H, "hutch++", 30, seed=3) == first
    assert trace.estimate(H, "hutch++", 30, seed=4) != first


def test_exact_traces_of_large_operators_come_in_chunks(monkeypatch):
    monkeypatch.setattr(trace, "EXACT_CHUNK", 7 * 150 + 1)
    H = rotated(FLAT + 2)
    found = trace.estimate(H, "exact")
    assert found.value == pytest.approx(300, rel=1e-12)
    assert (found.probes, H.products) == (150, 150)


@pytest.mark.parametrize("name", ["linear", "conv", "conv+bn", "attention"])
@pytest.mark.parametrize("wrt", ["weight", "input"])
def test_of_a_block(name, wrt):
    block, x = cases.build(name)
    H = lh.LocalHessian(block, x, wrt)
    exact = float(torch.trace(H.dense()))
    assert H.trace().shape == ()
    assert H.trace().dtype == H.dtype
    assert float(H.trace()) == pytest.approx(exact, rel=1e-10)
    assert H.trace_estimate("exact").value == pytest.approx(exact, rel=1e-10)
    found = H.trace_estimate("hutchinson", probes=40)
    assert abs(found.value - exact) < 5 * found.standard_error + 1e-9 * exact


def test_of_a_large_block_is_exact_unless_an_estimate_is_asked_for():
    """Neither block has a closed form of its trace."""
    tanh = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4))
    circular = nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular")
    for block, x, wrt in (
        (tanh, torch.randn(16, 20), "weight"),
        (circular, torch.randn(8, 3, 20), "input"),
    ):
        H = lh.LocalHessian(block, x, wrt)
        exact = float(H.dense().double().trace())
        assert float(H.trace()) == pytest.approx(exact, rel=1e-6)
    H = lh.LocalHessian(tanh, torch.randn(16, 20))
    exact = float(H.trace())
    found = H.trace_estimate()
    assert found.method == "hutch++"
    assert found.value != pytest.approx(exact, rel=1e-6)
    assert abs(found.value - exact) < 5 * found.standard_error
    assert found.standard_error < 0.2 * exact


def test_half_precision_sums_in_float32():
    values = torch.full((400,), 1.0, dtype=torch.float64)
    H = RowOperator(torch.diag(values).to(torch.bfloat16))
    assert trace.estimate(H, "exact").value == 400
    assert trace.estimate(H, "hutchinson", 6).value == 400  # bfloat16 has no 400 + 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("hutch",), ValueError, "method must be one of 'auto'.*'hutch'"),
        (("hutchinson", 1), ValueError, "probes must be at least 2 .*got 1"),
        (("hutch++", 3), ValueError, "probes must be at least 4 .*got 3"),
        (("hutch++", 8.0), TypeError, "probes must be an int, got 8.0"),
        (("hutch++", 8, None), TypeError, "seed must be an int, got None"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        trace.estimate(rotated(FLAT), *arguments)
