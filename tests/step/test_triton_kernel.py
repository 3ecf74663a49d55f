"""The Triton step's numbers against the reference in float64.

``TRITON_INTERPRET=0 pytest -m gpu`` runs this on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from triton_steps import (
    ALL,
    BF16,
    DEVICE,
    F16,
    F32,
    Step,
    clones,
    equal,
    here,
    kernel,
    make,
    with_tensors,
)

from lhkernels.step.triton_tables import MIN_CHUNK, TILE

pytestmark = here

OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.05},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    "maximize": {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True, "maximize": True},
    "zero-lr": {"lr": 0.0, "momentum": 0.9},
}
SIZES = [0, 1, 3, 4, 7, 8, 9, 63, 64, 65, 127, 128, 129, 255, 256, 257, 700]


@pytest.mark.parametrize("amend", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, amend):
    step = Step(make([(5, 60), (40,), ()]), make([(5, 60), (40,), ()]), amend=amend, **options)
    tables = step.tables()
    for _ in range(2):
        step.grads = make([g.shape for g in step.grads])
        before = clones(step.grads)[0]
        expected = step.expected()
        step.run(tables)
        step.check(expected)
        assert equal(step.grads, before)


@pytest.mark.parametrize("param", [F32, BF16, F16])
@pytest.mark.parametrize("grad", [F32, BF16, F16])
@pytest.mark.parametrize("momentum", [F32, BF16, F16])
def test_dtypes(param, grad, momentum):
    shapes = [(3, 67), (9,)]
    step = Step(make(shapes, param), make(shapes, grad), momentum_dtype=momentum, **ALL)
    tables = step.tables()
    for _ in range(2):
        expected = step.expected()
        step.run(tables)
        step.check(expected)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_sizes_around_borders(dtype):
    step = Step(make([(n, 1) for n in SIZES], dtype), make([(n, 1) for n in SIZES], dtype), **ALL)
    tables = step.tables()
    assert tables.chunks > len(SIZES)
    expected = step.expected()
    step.run(tables)
    step.check(expected)


def test_default_tiles():
    shapes = [(5, 3), (MIN_CHUNK // 64 + 1, 64), (TILE,)]
    step = Step(make(shapes), make(shapes), **ALL)
    tables = step.tables(tile=TILE, min_chunk=MIN_CHUNK)
    assert tables.chunks == 4
    expected = step.expected()
    step.run(tables)
    step.check(expected)


@pytest.mark.parametrize("which", ["params", "grads", "buffers"])
def test_unaligned_views(which):
    """They take the masked path, whose bits are those of the unmasked one."""
    step, twin = (Step(make([(300, 1)]), make([(300, 1)]), **ALL) for _ in range(2))
    view = torch.zeros(301, device=DEVICE)[1:].view(300, 1)
    original = getattr(step, which)[0]
    setattr(step, which, [view.copy_(original)])
    for name in {"params", "grads"} - {which}:
        setattr(twin, name, clones(getattr(step, name))[0])
    setattr(twin, which, [original.clone()])
    tables, twin_tables = step.tables(), twin.tables()
    for _ in range(2):
        step.run(tables)
        twin.run(twin_tables)
    assert tables.pointers[0, 3] == 0
    assert twin_tables.pointers[0, 3] == 1
    assert equal(step.params + step.buffers, twin.params + twin.buffers)
    assert torch.equal(kernel.sq_norms(tables), kernel.sq_norms(twin_tables))


def test_channels_last():
    """The kernel sees memory, so that equal strides are all it needs."""
    shapes = [(6, 5, 3, 3)]
    step = Step(
        *([t.to(memory_format=torch.channels_last) for t in make(shapes)] for _ in range(2)), **ALL
    )
    expected = step.expected()
    step.run(step.tables())
    step.check(expected)
    assert step.params[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("grad_scale", [65536.0, 3.0])
def test_grad_scale(grad_scale):
    shapes = [(5, 60)]
    step = Step(make(shapes), [1e3 * g for g in make(shapes)], **ALL)
    expected = step.expected(grad_scale=grad_scale)
    step.run(step.tables(), grad_scale=torch.tensor([grad_scale], device=DEVICE))
    step.check(expected)


@pytest.mark.parametrize("amend", [True, False])
def test_given_scales(amend):
    shapes = [(5, 60), (7,)]
    step = Step(make(shapes), make(shapes), amend=amend, **ALL)
    scales = torch.tensor([0.5, 3.0], device=DEVICE)
    expected = step.expected(scales=scales)
    step.run(step.tables(), scales=scales)
    step.check(expected)


def test_given_scales_of_own_norms_change_no_bit():
    shapes = [(5, 60), (7,)]
    step = Step(make(shapes), make(shapes), **ALL)
    twin = Step(*clones(step.params, step.grads), **ALL)
    tables, twin_tables = step.tables(), twin.tables()
    for _ in range(2):
        step.run(tables)
        twin.run(twin_tables, scales=twin.coefficients * kernel.sq_norms(twin_tables))
    assert equal(step.params + step.buffers, twin.params + twin.buffers)


@pytest.mark.parametrize("as_tensor", ["lr", "weight_decay", "momentum"])
def test_tensors_for_numbers_change_no_bit(as_tensor):
    results = []
    for convert in (float, lambda x: torch.tensor(x, device=DEVICE)):
        torch.manual_seed(1)
        step = Step(make([(5, 60)]), make([(5, 60)]), **ALL)
        numbers = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
        numbers[as_tensor] = convert(numbers[as_tensor])
        tables = step.tables()
        tables.update(step.params, step.grads, step.buffers)
        kernel.step(tables, with_tensors(**numbers))
        results.append(step.params + step.buffers)
    assert equal(*results)
