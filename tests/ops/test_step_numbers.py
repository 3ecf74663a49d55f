"""One step of the C++ operator is the reference's, whatever the options and dtypes."""

from __future__ import annotations

import pytest
import torch
from op_problems import ALL, DTYPES, OPTIONS, check_step, make_problem, vectors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "amend", "scales"])
@pytest.mark.parametrize("option", OPTIONS)
def test_step_is_the_references(option, kind, dtype):
    check_step(make_problem(vectors(dtype), kind), OPTIONS[option])


@pytest.mark.parametrize("buffer_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_and_buffers_may_have_other_dtypes(dtype, grad_dtype, buffer_dtype):
    params = vectors(dtype, (1, 33, 2049))
    check_step(make_problem(params, "amend", grad_dtype, buffer_dtype), ALL)


def test_dtypes_may_differ_from_tensor_to_tensor():
    params = vectors(torch.float32, (5, 5, 5, 5))
    problem = make_problem(params)
    problem.grads = [g.to(dtype) for g, dtype in zip(problem.grads, DTYPES)]
    problem.buffers = [b.to(dtype) for b, dtype in zip(problem.buffers, reversed(DTYPES))]
    check_step(problem, ALL)


@pytest.mark.parametrize("option", ["sgd", "momentum-decay", "dampening", "nesterov", "maximize"])
def test_plain_float32_sgd_has_torchs_bits(option):
    """Where the machine has fused multiply-add, whose use in torch's operations this follows."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("no fused multiply-add")
    h = OPTIONS[option]
    problem = make_problem(vectors(torch.float32))
    if h.dampening:
        problem.buffers = [torch.randn_like(b) for b in problem.buffers]
    params = [p.clone().requires_grad_() for p in problem.params]
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    optimizer = torch.optim.SGD(params, foreach=False, **{n: getattr(h, n) for n in names})
    for p, g, b in zip(params, problem.grads, problem.buffers):
        p.grad = g
        if h.momentum:
            optimizer.state[p]["momentum_buffer"] = b.clone()
    for _ in range(3):
        problem.step(h)
        optimizer.step()
    for got, want in zip(problem.params, params):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients_are_divided_by_the_scalers_factor(dtype):
    problem = make_problem(vectors(dtype, (3, 2049)), "amend")
    check_step(problem, ALL, divisor=1000.0, grad_scale=torch.tensor([1000.0]))


@pytest.mark.parametrize("found_inf", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_overflow_leaves_every_bit(dtype, found_inf):
    problem = make_problem(vectors(dtype, (3, 70000)), "amend")
    problem.grads[0].fill_(float("inf"))
    before, versions = problem.digest(), [t._version for t in problem.tensors()]
    problem.step(ALL, found_inf=torch.tensor(found_inf), seed=3)
    assert problem.digest() == before
    assert [t._version for t in problem.tensors()] == versions
    problem.step(ALL, found_inf=torch.tensor([0.0]))
    assert problem.digest() != before


def test_infinite_weights_stay_infinite_without_decay():
    problem = make_problem([torch.tensor([float("inf"), 1.0])])
    problem.step(OPTIONS["momentum"])
    assert problem.params[0][0] == float("inf")
