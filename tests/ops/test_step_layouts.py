"""Layouts that the C++ operator takes, and what it says about the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_problems import ALL, Problem, check_step, like, make_problem
from torch import Tensor


def layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    """Dense tensors in every layout that the operator takes."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    return {
        "0-dim": normal(),
        "channels_last": normal(6, 5, 3, 3).to(memory_format=torch.channels_last),
        "permuted": normal(7, 4, 9).permute(2, 0, 1),
        "transposed": normal(40, 65).t(),
        "unaligned": normal(2 * 2048 + 2)[1:],
        "size-1 dimensions": normal(9).as_strided((1, 9, 1), (77, 1, 5)),
        "empty": normal(0, 3).t(),
    }


@pytest.mark.parametrize("layout", layouts(torch.float32))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense_layouts(layout, dtype):
    param = layouts(dtype)[layout]
    problem = make_problem([param], "amend")
    if layout == "unaligned":
        problem.grads = [like(torch.empty(param.numel() + 3, dtype=dtype))[3:]]
        problem.buffers = [like(torch.empty(param.numel() + 2, dtype=dtype))[2:]]
    check_step(problem, ALL)


def test_strides_of_size_1_dimensions_are_ignored():
    problem = make_problem([torch.randn(4, 1, 3)], "amend")
    problem.grads = [torch.randn(12).as_strided((4, 1, 3), (3, 99, 1))]
    check_step(problem, ALL)


def wrong_layouts() -> dict[str, tuple[str, Problem]]:
    def problem(**changes: object) -> Problem:
        weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
        return replace(make_problem([torch.randn(3), weight]), **changes)

    right = problem()
    gaps = torch.randn(8)[::2]
    return {
        "contiguous gradient of a channels_last weight": (
            r"grads\[1\] has strides \[12, 4, 2, 1\], but params\[1\] has .*copy it to the",
            problem(grads=[right.grads[0], torch.randn(4, 3, 2, 2)]),
        ),
        "contiguous buffer": (
            r"momentum_buffers\[1\] has strides .*torch.empty_like\(param\).copy_",
            problem(buffers=[right.buffers[0], torch.randn(4, 3, 2, 2)]),
        ),
        "expanded gradient": (
            r"grads\[0\] has strides \[0\]",
            problem(grads=[torch.randn(1).expand(3), right.grads[1]]),
        ),
        "size": (
            r"grads\[0\] has sizes \[4\], but params\[0\] has \[3\]",
            problem(grads=[torch.randn(4), right.grads[1]]),
        ),
        "gaps": (
            r"params\[0\] .* has gaps or overlaps",
            problem(params=[gaps, right.params[1]]),
        ),
        "count": (r"1 grads for 2 params", problem(grads=right.grads[:1])),
        "no buffers": (r"0 momentum_buffers for 2 params and momentum=0.9", problem(buffers=[])),
        "coefficients alone": (
            r"coefficients without sq_norms",
            problem(coefficients=torch.ones(2, dtype=torch.float64)),
        ),
        "norms' dtype": (
            r"sq_norms .* must be contiguous float64",
            problem(sq_norms=torch.ones(2)),
        ),
        "scales' shape": (r"scales has shape \[3\]", problem(scales=torch.ones(3))),
    }


@pytest.mark.parametrize("case", wrong_layouts())
def test_what_it_cannot_step_is_refused_untouched(case):
    message, problem = wrong_layouts()[case]
    before = problem.digest()
    with pytest.raises(ValueError, match=message):
        problem.step(ALL)
    assert problem.digest() == before


def test_dtypes_it_does_not_know_are_refused():
    with pytest.raises(TypeError, match=r"params\[1\] has dtype Double, but params\[0\] has Float"):
        make_problem([torch.ones(2), torch.ones(2).double()]).step(ALL)
    integers = Problem([torch.ones(2)], [torch.ones(2, dtype=torch.int32)], [torch.ones(2)])
    with pytest.raises(TypeError, match=r"grads\[0\] has dtype Int; the C\+\+ step takes float32"):
        integers.step(ALL)
