"""Samples: what a step knows a weight by that somebody else has written since."""

import pytest
import torch
from op_problems import ALL, DTYPES, make_problem, vectors

from lhkernels.step import cpp as ops

WRITES = {
    "times 2": lambda p: p.mul_(2),
    "divided by 4": lambda p: p.div_(4),
    "clamped": lambda p: p.clamp_(-0.5, 0.5),
    "filled": lambda p: p.fill_(0.25),
    "one element": lambda p: p[0].add_(1),
    "reversed": lambda p: p.copy_(p.flip(0)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_changes_the_sample(dtype, write):
    """Of constant tensors too, where one and the same number is added to every element's bits."""
    tensors = vectors(dtype, (7, 512, 4096, 65536, 70_000, 140_001))
    if write not in ("clamped", "reversed"):
        tensors += [torch.full((size,), 0.5).to(dtype) for size in (3, 512, 4096, 65536, 131_072)]
    before = ops.samples(tensors)
    for tensor in tensors:
        WRITES[write](tensor)
    assert (ops.samples(tensors) != before).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_up_to_4_kib_every_byte_is_seen(dtype):
    size = 4096 // dtype.itemsize
    for n in (1, 63, size - 1, size):
        tensor = torch.zeros(n, dtype=dtype)
        seen = {int(ops.samples([tensor]))}
        for i in range(n):
            tensor[i] = 1
            seen.add(int(ops.samples([tensor])))
            tensor[i] = 0
        assert len(seen) == n + 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_leaves_the_samples_of_what_it_wrote(dtype):
    problem = make_problem(vectors(dtype, (5, 70_000, 0, 2049)), "amend")
    samples = ops.samples(problem.params)
    unseen = torch.zeros(1, dtype=torch.int64)
    for seed in (None, 4):
        problem.step(ALL, seed=seed, samples=samples, unseen=unseen)
        assert torch.equal(samples, ops.samples(problem.params))
    assert unseen == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_of_weights_with_another_sample_are_computed_anew(dtype):
    problem = make_problem(vectors(dtype, (5, 70_000, 33)), "amend")
    samples = ops.samples(problem.params)
    unseen = torch.zeros(1, dtype=torch.int64)
    problem.params[1].mul_(2)
    expected = problem.copy()
    expected.sq_norms = ops.sq_norms(expected.params)
    expected.step(ALL)
    problem.step(ALL, samples=samples, unseen=unseen)
    assert unseen == 2
    assert problem.digest() == expected.digest()


def test_samples_do_not_depend_on_threads():
    tensors = vectors(torch.float32, (65536 * 7 + 3, 10))
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(ops.samples(tensors))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_overflow_looks_at_nothing():
    problem = make_problem(vectors(torch.float32, (5,)), "amend")
    samples = torch.tensor([123])
    problem.step(ALL, samples=samples, found_inf=torch.ones(()))
    assert samples == 123
