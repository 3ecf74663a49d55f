"""The Triton step's carried norms, overflows, stochastic rounding and tables."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from triton_steps import ALL, BF16, DEVICE, EPS, F16, F32, Step, clones, equal, here, kernel, make

from lhkernels.hyperparameters import Hyperparameters
from lhkernels.step.triton_tables import MIN_CHUNK, TILE, Tables, chunk_elements

pytestmark = here


# ---- norms


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_carried_norms_are_recomputed_norms(dtype):
    shapes = [(33, 17), (65,), (1, 1), (0, 2), (5, 0)]
    step = Step(make(shapes, dtype), make(shapes, dtype), **ALL)
    tables = step.tables()
    for _ in range(3):
        step.run(tables)
        carried = kernel.sq_norms(tables)
        kernel.refresh_norms(tables, range(len(shapes)))
        assert torch.equal(kernel.sq_norms(tables), carried)
        assert torch.equal(kernel.sq_norms(step.tables()), carried)
        exact = torch.stack([p.double().square().sum() for p in step.params])
        exact[1] = 1  # a vector's factor has no norm
        torch.testing.assert_close(carried.double(), exact, rtol=4 * EPS, atol=0)


def test_refresh_of_some():
    shapes = [(33, 17), (5, 60), (9, 9)]
    step = Step(make(shapes), make(shapes), **ALL)
    tables = step.tables()
    step.run(tables)
    step.params[1].mul_(2)
    kernel.refresh_norms(tables, [1])
    kernel.refresh_norms(tables, [])
    assert torch.equal(kernel.sq_norms(tables), kernel.sq_norms(step.tables()))


def test_two_runs_have_the_same_bits():
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        step = Step(make([(33, 17), (65,)], BF16), make([(33, 17), (65,)], BF16), **ALL)
        tables = step.tables()
        for i in range(3):
            step.run(tables, seed=i)
        results.append(step.params + step.buffers)
    assert equal(*results)


@pytest.mark.parametrize("overflow_at", [0, 1, 2])
@pytest.mark.parametrize("capturable", [False, True])
def test_an_overflow_leaves_everything_as_it_is(overflow_at, capturable):
    shapes = [(33, 17), (65,)]
    step = Step(make(shapes), make(shapes), **ALL)
    twin = Step(*clones(step.params, step.grads), **ALL)
    tables, twin_tables = step.tables(capturable=capturable), twin.tables()
    for i in range(3):
        if i == overflow_at:
            before, good = clones(step.params, step.buffers), step.grads
            step.grads = [torch.full_like(g, math.inf) for g in good]
            step.run(tables, found_inf=torch.tensor([2.0], device=DEVICE))
            step.grads = good
            assert equal(step.params + step.buffers, before[0] + before[1])
        step.run(tables, found_inf=torch.zeros(1, device=DEVICE))
        twin.run(twin_tables)
    assert equal(step.params + step.buffers, twin.params + twin.buffers)
    assert torch.equal(kernel.sq_norms(tables), kernel.sq_norms(twin_tables))


def test_capturable_changes_no_bit():
    shapes = [(33, 17), (65,)]
    step = Step(make(shapes), make(shapes), **ALL)
    twin = Step(*clones(step.params, step.grads), **ALL)
    tables, twin_tables = step.tables(capturable=True), twin.tables()
    assert isinstance(tables.parity, Tensor)
    for _ in range(3):
        step.run(tables)
        twin.run(twin_tables)
    assert equal(step.params + step.buffers, twin.params + twin.buffers)


# ---- stochastic rounding


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(BF16, 1.003), (BF16, -3e-5), (BF16, 3e-39), (F16, 1.0003), (F16, -1e-6), (F16, 3e-8)],
)
def test_stochastic_rounding_has_the_right_mean(dtype, value):
    """From 0, one step of lr = -value: every element is a neighbour of the value."""
    n, seeds = 64 * 64, 4
    neighbours, total = set(), 0.0
    for seed in range(seeds):
        step = Step([torch.zeros(n, dtype=dtype, device=DEVICE)], make([n]), amend=False)
        step.grads[0].fill_(-value)
        step.h = Hyperparameters(lr=1.0)
        step.run(step.tables(tile=1024, min_chunk=4096), seed=seed)
        neighbours |= set(step.params[0].double().unique().tolist())
        total += step.params[0].double().sum().item()
    low, high = min(neighbours), max(neighbours)
    exact = torch.tensor(value, dtype=F32).item()
    assert len(neighbours) == 2
    assert low < exact < high
    up = (exact - low) / (high - low)
    deviation = (high - low) * math.sqrt(up * (1 - up) / (n * seeds))
    assert abs(total / (n * seeds) - exact) < 4 * deviation


def test_stochastic_rounding_follows_its_seed():
    def stepped(seed, dtype=BF16):
        torch.manual_seed(5)
        step = Step(make([(5, 60)], dtype), make([(5, 60)], dtype), **ALL)
        step.run(step.tables(), seed=seed)
        return step.params[0]

    assert torch.equal(stepped(7), stepped(7))
    assert torch.equal(stepped(7), stepped(torch.tensor(7, device=DEVICE)))
    assert not torch.equal(stepped(7), stepped(8))
    assert torch.equal(stepped(7, F32), stepped(None, F32))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_stochastic_rounding_keeps_what_needs_none(dtype):
    subnormal = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    values = [0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, subnormal, torch.finfo(dtype).max]
    values = torch.tensor(values, dtype=dtype)
    step = Step([values.to(DEVICE)], [torch.zeros_like(values).to(DEVICE)], amend=False, lr=0.0)
    step.run(step.tables(), seed=1)
    torch.testing.assert_close(step.params[0].cpu(), values, rtol=0, atol=0, equal_nan=True)


# ---- tables


def test_chunks_grow_with_the_tensor():
    """A program reads little of its tensor's partial norms beside its chunk."""
    for numel in (1, MIN_CHUNK, 10**6, 2**24, 45_000_000, 525_000_000, 2**31 + 1, 2**36):
        chunk = chunk_elements(numel)
        assert chunk & (chunk - 1) == 0
        assert chunk % TILE == 0
        assert 4 * numel / chunk <= 10 * chunk / 40
    assert chunk_elements(2**24) == MIN_CHUNK


def test_tables_are_small():
    """Under 0.1% of the bytes of a transformer's bfloat16 parameters."""
    width, layers, vocabulary = 2048, 16, 32000
    shapes = [(width, width)] * 4 * layers + [(width, 4 * width)] * 3 * layers
    shapes += [(width,)] * 2 * layers + [(vocabulary, width)]
    numels = [math.prod(shape) for shape in shapes]
    params = [torch.empty(1, dtype=BF16).expand(shape) for shape in shapes]
    tables = Tables(params, uses_norm=[len(s) == 2 for s in shapes])
    parts = (tables.pointers, tables.extents, tables.owners, tables.partials)
    assert sum(t.nbytes for t in parts) < 1e-3 * 2 * sum(numels)


def test_update_sends_only_what_changed():
    step = Step(make([(5, 60)]), make([(5, 60)]), **ALL)
    tables = step.tables()
    assert tables.update(step.params, step.grads, step.buffers)
    assert not tables.update(step.params, step.grads, step.buffers)
    assert not tables.update(step.params)
    moved = clones(step.grads)[0]
    assert tables.update(step.params, moved, step.buffers)
    assert tables.pointers[0, 1] == moved[0].data_ptr()


def test_norms_outlive_another_gradient_dtype():
    step = Step(make([(5, 60)], BF16), make([(5, 60)], BF16), **ALL)
    tables = step.tables()
    step.run(tables)
    step.grads = [g.float() for g in step.grads]
    expected = step.expected()
    step.run(tables)
    step.check(expected)


def test_coefficients_need_uses_norm():
    with pytest.raises(ValueError, match="uses_norm"):
        Tables(make([3]), coefficients=torch.ones(1))
