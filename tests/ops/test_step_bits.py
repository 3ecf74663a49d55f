"""Which bits are the same: carried and recomputed norms, threads, vector widths."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from op_problems import ALL, DTYPES, make_problem, several_steps, vectors

from lhkernels.step import cpp as ops


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_carried_norms_have_the_bits_of_recomputed_ones(dtype):
    problem = make_problem(vectors(dtype, (1, 33, 5000, 70001)), "amend")
    h = replace(ALL, lr=1e-3)
    for _ in range(10):
        problem.step(h)
        assert torch.equal(problem.sq_norms, ops.sq_norms(problem.params))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_those_of_the_stored_weights(dtype):
    params = vectors(dtype)
    want = torch.stack([p.double().square().sum() for p in params])
    torch.testing.assert_close(ops.sq_norms(params), want, rtol=1e-13, atol=0)


def test_norms_that_no_factor_uses_stay_as_they_are():
    problem = make_problem(vectors(torch.float32, (5, 6, 7)), "amend")
    problem.sq_norms[1] = 1.0
    problem.step(ALL, uses_norm=torch.tensor([True, False, True]))
    assert problem.sq_norms[1] == 1.0
    norms = ops.sq_norms(problem.params)
    assert torch.equal(problem.sq_norms[[0, 2]], norms[[0, 2]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thread_count_does_not_change_the_bits(dtype):
    threads = torch.get_num_threads()
    digests = set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            digests.add(several_steps(dtype, seed=5).digest())
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


def run_with(capability: str, code: str) -> str:
    """What Python prints when torch and the operators use this instruction set."""
    result = subprocess.run(
        [sys.executable, "-c", f"import torch\nimport op_problems as problems\n{code}"],
        env={
            **os.environ,
            "ATEN_CPU_CAPABILITY": capability,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs AVX-512 to compare with AVX2"
)
def test_vector_width_does_not_change_the_bits():
    code = "print(*(problems.several_steps(d, seed=5).digest() for d in problems.DTYPES))"
    assert run_with("avx2", code) == run_with("avx512", code)


def test_portable_version_keeps_the_tolerances():
    code = (
        "for dtype in problems.DTYPES:\n"
        "    for h in problems.OPTIONS.values():\n"
        "        problems.check_step(problems.make_problem(problems.vectors(dtype), 'amend'), h)\n"
        "print(torch.backends.cpu.get_cpu_capability())"
    )
    assert run_with("default", code) not in ("AVX2", "AVX512")
