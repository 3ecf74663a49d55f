"""Stochastic rounding of 16-bit parameters: unbiased, reproducible, exact where it can be."""

from __future__ import annotations

import pytest
import torch
from op_problems import LOW_PRECISION, Problem, ulp
from torch import Tensor

from lhkernels.hyperparameters import Hyperparameters


def rounding_problem(dtype: torch.dtype, value: float, fraction: float, size: int) -> Problem:
    """A step that leads from ``value`` to ``fraction`` of the way to its neighbour above."""
    param = torch.full((size,), value, dtype=dtype)
    unit = ulp(param[:1].double(), dtype).item()
    return Problem([param], [torch.full((size,), -fraction * unit)], [])


# Normal, negative, and (float16) subnormal numbers.
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.bfloat16, 1.0),
        (torch.bfloat16, -3.5),
        (torch.float16, 1.0),
        (torch.float16, -0.375),
        (torch.float16, 3 * 2.0**-24),
        (torch.float16, -700 * 2.0**-24),
    ],
    ids=str,
)
@pytest.mark.parametrize("fraction", [0.5, 0.125, 0.9])
def test_stochastic_rounding_is_unbiased(dtype, value, fraction):
    """The fraction of elements rounded up is the exact one within 5 standard deviations."""
    size = 200_000
    problem = rounding_problem(dtype, value, fraction, size)
    problem.step(Hyperparameters(lr=1.0), seed=11)
    steps = (problem.params[0].double() - value) / ulp(torch.tensor(value).double(), dtype)
    assert set(steps.unique().tolist()) == {0.0, 1.0}
    deviation = (fraction * (1 - fraction) / size) ** 0.5
    assert abs(steps.mean().item() - fraction) < 5 * deviation


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_stochastic_rounding_keeps_what_is_exact(dtype):
    """Every 16-bit pattern, infinities and NaN included."""
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    problem = Problem([patterns.clone()], [torch.zeros(2**16)], [])
    problem.step(Hyperparameters(lr=0.0), seed=1)
    torch.testing.assert_close(problem.params[0], patterns, rtol=0, atol=0, equal_nan=True)
    problem.step(Hyperparameters(lr=0.0))
    torch.testing.assert_close(problem.params[0], patterns, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_stochastic_rounding_is_reproducible_and_independent(dtype):
    def ups(seed: int, tensor: int = 0, size: int = 140_000) -> Tensor:
        problem = rounding_problem(dtype, 1.0, 0.5, size)
        other = rounding_problem(dtype, 1.0, 0.5, 10)
        lists = ([problem, other], [other, problem])[tensor]
        both = Problem([p.params[0] for p in lists], [p.grads[0] for p in lists], [])
        both.step(Hyperparameters(lr=1.0), seed=seed)
        return (problem.params[0] > 1).double() - 0.5

    first = ups(seed=1)
    assert torch.equal(first, ups(seed=1))
    for other in (ups(seed=2), ups(seed=1, tensor=1), first.roll(1), first.roll(65536)):
        correlation = 4 * (first * other).mean().item()
        assert abs(correlation) < 5 / first.numel() ** 0.5
