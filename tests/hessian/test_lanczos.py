"""The Lanczos process against dense eigenvalues and exact moments."""

import pytest
import torch

from lhkernels.hessian.lanczos import lanczos
from lhkernels.hessian.slq import quadrature


def symmetric(dim, dtype=torch.float64):
    A = torch.randn(dim, dim, dtype=torch.float64)
    return ((A + A.T) / 2).to(dtype)


def rows_of(A):
    return lambda rows: rows @ A


@pytest.mark.parametrize("dim", [1, 2, 7, 40])
@pytest.mark.parametrize("extra", [0, 5])
def test_as_many_steps_as_dimensions_give_every_eigenvalue(dim, extra):
    A = symmetric(dim)
    values = torch.linalg.eigvalsh(A)
    for ritz in lanczos(rows_of(A), torch.randn(3, dim, dtype=torch.float64), dim + extra):
        assert len(ritz.values) == dim
        torch.testing.assert_close(ritz.values, values, rtol=1e-11, atol=1e-11)
        assert ritz.exhausted
        assert (ritz.residuals == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_the_quadrature_is_exact_up_to_power_2m_minus_1(dtype, tolerance):
    A, steps = symmetric(60, dtype) / 10, 6
    start = torch.randn(4, 60, dtype=dtype)
    for v, ritz in zip(start.double(), lanczos(rows_of(A), start, steps), strict=True):
        w = v = v / v.norm()
        for k in range(2 * steps):
            assert float((ritz.weights * ritz.values**k).sum()) == pytest.approx(
                float(v @ w), abs=tolerance
            )
            w = A.double() @ w
        assert float((ritz.weights * ritz.values ** (2 * steps)).sum()) < float(v @ w)


def test_residuals_bound_the_distance_to_an_eigenvalue():
    A = symmetric(80)
    values = torch.linalg.eigvalsh(A)
    for ritz in lanczos(rows_of(A), torch.randn(3, 80, dtype=torch.float64), 15):
        distance = (ritz.values[:, None] - values).abs().min(1).values
        assert (distance <= ritz.residuals + 1e-12).all()
        assert not ritz.exhausted
        assert float(ritz.residuals.max()) < 10  # and they are not idle: the spectrum is 25 wide


def test_a_long_process_stays_orthogonal():
    """Without reorthogonalisation, converged eigenvalues return as ghosts."""
    values = torch.cat([torch.linspace(0, 1, 118, dtype=torch.float64), torch.tensor([5.0, 9.0])])
    (ritz,) = lanczos(lambda r: r * values, torch.ones(1, 120, dtype=torch.float64), 120)
    torch.testing.assert_close(ritz.values, values, rtol=0, atol=1e-10)


def test_a_process_that_breaks_down_leaves_the_others_going():
    values = torch.arange(1.0, 31.0, dtype=torch.float64)
    start = torch.zeros(4, 30, dtype=torch.float64)
    start[0, 3] = 2.0  # an eigenvector
    start[1] = 1.0
    start[2, [4, 9, 20]] = 1.0  # three of them
    start[3] = torch.randn(30)
    sizes = []

    def product(rows):
        sizes.append(len(rows))
        return rows * values

    first, second, third, fourth = lanczos(product, start, 12)
    assert [len(ritz.values) for ritz in (first, second, third, fourth)] == [1, 12, 3, 12]
    assert sizes == [4, 3, 3] + 9 * [2]
    assert first.values.tolist() == [4.0]
    torch.testing.assert_close(third.values, values[[4, 9, 20]])
    torch.testing.assert_close(third.weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert third.exhausted
    assert not second.exhausted
    (alone,) = lanczos(lambda r: r * values, start[1:2], 12)
    torch.testing.assert_close(second.values, alone.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_and_multiples_of_the_identity_end_after_one_step(dtype):
    for factor in (0.0, -2.5, 1e-30):
        for ritz in lanczos(lambda r, f=factor: f * r, torch.randn(2, 9, dtype=dtype), 9):
            assert ritz.weights.tolist() == [1.0]
            assert float(ritz.values) == pytest.approx(factor, rel=1e-6)


def test_early_stop_at_converged_extremes():
    A = symmetric(300)
    values = torch.linalg.eigvalsh(A)
    (ritz,) = lanczos(rows_of(A), torch.randn(1, 300, dtype=torch.float64), 300, tolerance=1e-7)
    assert len(ritz.values) < 250
    assert ritz.values[[0, -1]].tolist() == pytest.approx(values[[0, -1]].tolist(), abs=1e-10)
    assert float(ritz.residuals[[0, -1]].max()) <= 1e-7 * float(ritz.values.abs().max())


def test_products_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match=r"product H @ v is not finite.*float64"):
        lanczos(lambda r: r * torch.nan, torch.ones(1, 4), 3)


def test_probes_do_not_depend_on_the_memory_limit_or_the_global_generator():
    A = symmetric(50)

    def run(**options):
        return quadrature(
            rows_of(A), 50, A.dtype, A.device, probes=7, steps=6, seed=3, **options
        )  # fmt: skip

    state = torch.get_rng_state()
    whole = run()
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(1)
    parts = run(memory_limit=3 * 6 * 50 * 8)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.values, other.values)
    gauss = run(distribution="gaussian")
    assert not torch.allclose(gauss[0].values, whole[0].values)
