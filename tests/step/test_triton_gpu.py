"""What only a compiler, or a GPU, can show of the Triton step.

``TRITON_INTERPRET=0 pytest -m gpu`` on a machine with a CUDA device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from triton_steps import (
    ALL,
    BF16,
    DEVICE,
    EPS,
    Step,
    clones,
    equal,
    kernel,
    make,
    on_gpu,
    with_tensors,
)

from lhkernels.step.triton_tables import MIN_CHUNK, TILE


def gpu(test):
    for mark in on_gpu:
        test = mark(test)
    return test


COUNT_KERNELS = """
import torch, triton
from types import SimpleNamespace
from triton.backends.compiler import GPUTarget
from lhkernels.step import triton_kernel as kernel
from lhkernels.step.triton_tables import Tables

class Driver:  # of a GPU that is not there: kernels are compiled for it and not launched
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

triton.runtime.driver.set_active(Driver())
step_kernel = kernel.step_kernel
launch = step_kernel.run
step_kernel.run = lambda *args, warmup, **options: launch(*args, warmup=True, **options)

NOTHING = {"nesterov": False, "maximize": False}

def step(numels, lr, momentum, dampening=0.0, weight_decay=0.0):
    numbers = dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
    params, grads, buffers = ([torch.ones(n)[i % 2 :] for i, n in enumerate(numels)] for _ in "pgm")
    tables = Tables(
        params, grads, buffers, uses_norm=[True] * len(numels), coefficients=torch.ones(len(numels))
    )
    for _ in range(2):
        kernel.step(tables, SimpleNamespace(**NOTHING, **numbers))
    return len(step_kernel.device_caches[0][0])

counts = [
    step([16], lr=0.1, momentum=0.9),
    step([17, 4096, 100_000, 1], lr=1.0, momentum=0.5, weight_decay=1e-4),
    step([16] * 16, lr=1, momentum=1, dampening=1, weight_decay=0),
    step([3], lr=1e-300, momentum=0.0, dampening=-16.0, weight_decay=16.0),
    step([3], lr=torch.tensor(0.1), momentum=0.9),
    step([3], lr=torch.zeros(3)[1], momentum=0.9),
]
print(counts)
"""


def test_nothing_recompiles_but_another_kind_of_argument():
    """Not numbers, nor tensors, chunks, parity or addresses; a tensor for a number does, once."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", COUNT_KERNELS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [1, 1, 1, 1, 2, 2]


@gpu
def test_one_launch_and_no_wait():
    shapes = [(300, 1000), (7,), (), (64, 3, 3, 3)] * 40
    step = Step(make(shapes), make(shapes), **ALL)
    tables = step.tables()
    found_inf, grad_scale = torch.zeros(1, device=DEVICE), torch.ones(1, device=DEVICE)
    step.run(tables, found_inf=found_inf, grad_scale=grad_scale)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.run(tables, found_inf=found_inf, grad_scale=grad_scale)
            step.grads = clones(step.grads)[0]
            step.run(tables, found_inf=found_inf, grad_scale=grad_scale)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    names = [event.name for event in trace.events()]
    assert sum(name == "step_kernel" for name in names) == 2
    assert sum("Memcpy HtoD" in name for name in names) == 1


@gpu
def test_tables_in_flight_are_not_overwritten():
    """The host runs far ahead of the device, with other gradients at every step."""
    shapes = [(1000, 1000)] * 4
    step = Step(make(shapes), make(shapes), **ALL)
    twin = Step(*clones(step.params, step.grads), **ALL)
    tables, twin_tables = step.tables(), twin.tables()
    many = [make(shapes) for _ in range(20)]
    torch.cuda.synchronize()
    for step.grads in many:
        step.run(tables)
    for twin.grads in many:
        twin.run(twin_tables)
        torch.cuda.synchronize()
    assert equal(step.params + step.buffers, twin.params + twin.buffers)


@gpu
def test_graph_capture():
    """Gradients allocated in the capture, a learning rate changed after it, eager steps between."""
    shapes = [(300, 1000), (7,)]
    step = Step(make(shapes), make(shapes), **ALL)
    twin = Step(*clones(step.params, step.grads), **ALL)
    tables, twin_tables = step.tables(capturable=True), twin.tables()
    lr, source, eager = torch.tensor(0.1, device=DEVICE), clones(step.grads)[0], step.grads

    def run(lr):
        tables.update(step.params, step.grads, step.buffers)
        kernel.step(tables, with_tensors(lr=lr, momentum=0.9, weight_decay=0.05))

    def run_twin(lr):
        twin.grads = clones(source)[0]
        twin_tables.update(twin.params, twin.grads, twin.buffers)
        kernel.step(twin_tables, lr, 0.9, 0.0, 0.05)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(lr)
    torch.cuda.current_stream().wait_stream(side)
    run_twin(0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.grads = [g * 1 for g in source]
        run(lr)
    captured = step.grads
    for new_lr in (0.1, 0.03, 0.01):
        lr.fill_(new_lr)
        for g in source:
            g.normal_()
        graph.replay()
        run_twin(new_lr)
        step.grads = [e.copy_(g) for e, g in zip(eager, source)]
        run(lr)
        run_twin(new_lr)
    assert equal(step.params + step.buffers, twin.params + twin.buffers)
    assert torch.equal(kernel.sq_norms(tables), kernel.sq_norms(twin_tables))
    del captured


@gpu
def test_more_than_2_to_the_31_elements():
    numel, ends = 2**31 + 5000, 10_000
    if torch.cuda.mem_get_info()[0] < 4 * 2 * numel:
        pytest.skip("needs 17 GB of GPU memory")
    shapes = [(numel, 1)]
    step = Step([torch.randn(s, dtype=BF16, device=DEVICE) for s in shapes], [], **ALL)
    step.grads = [torch.randn_like(step.params[0])]
    step.coefficients = torch.full((1,), 1e-10, device=DEVICE)
    tables = step.tables(tile=TILE, min_chunk=MIN_CHUNK)
    norm = sum(part.double().square().sum() for part in step.params[0].split(2**27))
    torch.testing.assert_close(kernel.sq_norms(tables)[0].double(), norm, rtol=8 * EPS, atol=0)
    slices = [slice(0, ends), slice(2**31 - ends, 2**31 + ends // 4), slice(-ends, None)]
    parts = []
    for where in slices:
        part = Step([step.params[0][where].clone()], [step.grads[0][where]], **ALL)
        parts.append((part, part.expected(scales=1e-10 * norm[None])))
    step.run(tables)
    for where, (part, expected) in zip(slices, parts):
        part.params, part.buffers = [step.params[0][where]], [step.buffers[0][where]]
        part.check(expected)
