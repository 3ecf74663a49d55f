"""What the dispatcher, autograd and the build make of the operators."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from op_problems import ALL, make_problem


def test_versions_go_up():
    problem = make_problem([torch.ones(3), torch.ones(2, 2)], "amend")
    written = [*problem.params, *problem.buffers, problem.sq_norms]
    before = [t._version for t in written]
    grads = [g._version for g in problem.grads]
    problem.step(ALL)
    assert all(t._version > v for t, v in zip(written, before))
    assert [g._version for g in problem.grads] == grads


def test_parameters_that_require_gradients():
    problem = make_problem([torch.randn(5).requires_grad_()])
    with torch.no_grad():
        check = problem.params[0].clone()
        problem.step(ALL)
    assert not torch.equal(problem.params[0], check)
    assert problem.params[0].requires_grad
    assert problem.params[0].is_leaf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_pass_opcheck(dtype):
    problem = make_problem([torch.randn(4, 3).to(dtype), torch.randn(5).to(dtype)], "amend")
    for op in (torch.ops.lhkernels.sq_norms, torch.ops.lhkernels.samples):
        torch.library.opcheck(op.default, (problem.params,))
    numbers = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1}
    lists = (problem.params, problem.grads, problem.buffers)
    kept = (torch.tensor([1, 2]), torch.zeros(1, dtype=torch.int64))
    state = (problem.sq_norms, problem.coefficients, torch.tensor([True, False]), *kept)
    given = (torch.tensor([7, 8]), None, None, None, 3)
    torch.library.opcheck(
        torch.ops.lhkernels.sgd_step_.default,
        (*lists, *state, *given),
        {**numbers, "nesterov": True, "maximize": False},
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the symbol's name is Linux's")
def test_the_extension_was_built_with_openmp():
    """Without it at::parallel_for is serial and says nothing."""
    from lhkernels import _C

    binary = Path(_C.__file__).read_bytes()
    assert b"GOMP_parallel" in binary or b"__kmpc_fork_call" in binary
