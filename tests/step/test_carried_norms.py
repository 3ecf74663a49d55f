"""Norms carried from step to step: whoever else writes a weight, the next step knows."""

import pytest
import torch
from cases import use
from torch import nn

import lhkernels as lh

OPTIONS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def clamp(p):
    with torch.no_grad():
        p.clamp_(-0.1, 0.1)


def multiply(p):
    with torch.no_grad():
        p.mul_(3)


def assign(p):
    p.data = p.data * 3


def assign_twice(p):  # the allocator gives the second the first's address
    p.data = p.data * 3
    p.data = p.data * 3


def load(p):
    layer = nn.Linear(p.shape[1], p.shape[0], bias=False)
    layer.weight = p
    layer.load_state_dict({"weight": torch.full_like(p, 0.3)})


def under_inference_mode(p):
    with torch.inference_mode():
        p.mul_(2)


WRITES = [clamp, multiply, assign, assign_twice, load, under_inference_mode]


def steps(p, flags, write, invalidate=False):
    opt = lh.ScaleAmendedSGD([p], **OPTIONS, **flags)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        p.grad = torch.randn(p.shape, generator=generator)
        opt.step()
        write(p)
        if invalidate:
            opt.invalidate_norms()
    p.grad = torch.randn(p.shape, generator=generator)
    opt.step()
    return p.detach()


@pytest.mark.parametrize("backend", ["foreach", "cpp", "triton"])
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_writes_are_noticed(backend, write, monkeypatch):
    start = 0.02 * torch.randn(64, 64)
    expected = steps(nn.Parameter(start.clone()), {"foreach": False}, write)
    found = steps(nn.Parameter(start.clone()), use(backend, monkeypatch), write)
    assert (found - expected).norm() < 1e-4 * expected.norm()  # a stale factor is off by 9


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_unseen_writes_need_invalidate_norms(backend, monkeypatch):
    """p.data.mul_() bumps no version: documented, and this is the remedy."""
    start = 0.2 * torch.randn(20, 30)
    flags = use(backend, monkeypatch)

    def write(p):
        p.data.mul_(3)

    expected = steps(nn.Parameter(start.clone()), {"foreach": False}, write)
    found = steps(nn.Parameter(start.clone()), flags, write, invalidate=True)
    assert (found - expected).norm() < 1e-4 * expected.norm()  # a stale factor is off by 9


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_carried_norms_have_the_bits_of_recomputed_ones(backend, monkeypatch):
    start = 0.2 * torch.randn(130, 70)
    flags = use(backend, monkeypatch)
    carried = steps(nn.Parameter(start.clone()), flags, lambda p: None)
    recomputed = steps(nn.Parameter(start.clone()), flags, lambda p: None, invalidate=True)
    assert torch.equal(carried, recomputed)


@pytest.mark.parametrize("backend", ["reference", "foreach", "cpp", "triton"])
def test_steps_bump_versions(backend, monkeypatch):
    p = nn.Parameter(torch.randn(3, 4))
    p.grad = torch.ones(3, 4)
    opt = lh.ScaleAmendedSGD([p], **OPTIONS, **use(backend, monkeypatch))
    opt.step()
    before = p._version, opt.state[p]["momentum_buffer"]._version
    opt.step()
    assert p._version > before[0]
    assert opt.state[p]["momentum_buffer"]._version > before[1]


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_a_step_that_fails_makes_no_norm_valid(backend, monkeypatch):
    start = 0.2 * torch.randn(20, 30)
    flags = use(backend, monkeypatch)
    found = []
    for fails in (False, True):
        p = nn.Parameter(start.clone())
        p.grad = torch.ones_like(p)
        opt = lh.ScaleAmendedSGD([p], **OPTIONS, **flags)
        opt.step()
        multiply(p)
        if fails:
            (params,) = (kept for _, kept in opt._sets._sets.values())
            with monkeypatch.context() as patch:
                patch.setattr(params, "launch", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    opt.step()
        opt.step()
        found.append(p.detach())
    assert torch.equal(*found)
