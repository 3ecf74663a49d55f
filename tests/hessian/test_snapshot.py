"""A snapshot: the user's block and the random state stay as they were, bit for bit."""

import copy
import random

import hessian_cases as cases
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lhkernels as lh
from lhkernels.hessian.snapshot import Snapshot

ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)
CPU_AND_GPU = ["cpu", pytest.param("cuda", marks=ON_GPU)]


def block_with_state():
    """Train-mode norms that have seen data, dropout, a frozen parameter, gradients, mixed modes."""
    block = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Sequential(
            nn.Conv2d(4, 3, 1), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
        ),
        nn.BatchNorm2d(3).eval(),
    )
    x = torch.randn(4, 2, 5, 5)
    block(x).square().sum().backward()
    block[4][0].weight.requires_grad_(False)
    block[1].num_batches_tracked += 6
    return block, x


def state_of(block):
    """Everything that a careless operator could change, as clones."""
    return {
        **{f"value {n}": t.detach().clone() for n, t in block.state_dict(keep_vars=True).items()},
        **{f"grad {n}": None if p.grad is None else p.grad.clone() for n, p in named(block)},
        **{f"requires_grad {n}": p.requires_grad for n, p in named(block)},
        **{f"identity {n}": (id(p), p.data_ptr(), p._version) for n, p in named(block)},
        **{f"version of {n}": (id(b), b._version) for n, b in block.named_buffers()},
        **{f"training {n}": part.training for n, part in block.named_modules()},
    }


def named(block):
    return list(block.named_parameters())


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        other = after[name]
        same = torch.equal(value, other) if torch.is_tensor(value) else value == other
        assert same, name


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("kind", ["gauss_newton", "full"])
@pytest.mark.parametrize("wrt", ["weight", "input"])
def test_nothing_of_the_block_or_the_random_state_changes(wrt, kind, device):
    block, x = block_with_state()
    block, x = block.to(device), x.to(device)
    x.requires_grad_()
    r = torch.randn(4, 3, 5, 5, device=device) if kind == "full" else None
    before, kept = state_of(block), x.detach().clone()
    rng = torch.get_rng_state()
    cuda_rng = torch.cuda.get_rng_state() if device == "cuda" else None
    H = lh.LocalHessian(block, x, wrt, kind, r)
    H @ torch.ones(H.dim, 2, device=device)
    H.dense()
    H.trace()
    H.trace_estimate("hutchinson", probes=4)
    assert_same(before, state_of(block))
    assert torch.equal(x, kept)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), rng)
    if cuda_rng is not None:
        assert torch.equal(torch.cuda.get_rng_state(), cuda_rng)


class FailsLate(nn.Module):
    """Draws random numbers, touches a buffer, then fails."""

    def __init__(self, fail):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("count", torch.zeros(()))
        self.fail = fail

    def forward(self, x):
        self.count += 1
        noise = torch.randn_like(x)
        if self.fail:
            raise ArithmeticError("half-way")
        return (x + noise) @ self.weight


def test_an_error_half_way_changes_nothing():
    block, x = FailsLate(True), torch.randn(3, 2)
    before, rng = state_of(block), torch.get_rng_state()
    with pytest.raises(ArithmeticError, match="half-way"):
        lh.LocalHessian(block, x)
    assert_same(before, state_of(block))
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()


def test_every_evaluation_is_the_same_function():
    block, x = FailsLate(False), torch.randn(3, 2)
    frozen = Snapshot(block, x)
    first = frozen()
    torch.randn(7)
    assert torch.equal(first, frozen())
    assert torch.equal(first, frozen.output)
    assert frozen.module.count == 0  # buffers are copied for each evaluation
    expected = block(x)
    torch.manual_seed(0)
    assert not torch.equal(expected, block(x))  # other noise, so the above means something


def test_the_recorded_mask_is_the_one_that_the_next_forward_pass_would_use():
    block, x = nn.Dropout(0.5), torch.randn(50)
    frozen = Snapshot(block, x)
    expected = block(x)
    assert torch.equal(frozen.output, expected)
    assert not torch.equal(frozen.output, block(x))


def test_later_changes_of_block_and_input_are_not_seen():
    block, x = cases.build("gelu mlp")
    frozen = Snapshot(block, x)
    before = frozen().clone()
    with torch.no_grad():
        x.zero_()
        for p in block.parameters():
            p.zero_()
    assert torch.equal(frozen(), before)
    assert before.abs().max() > 0


def test_other_parameters_and_inputs():
    block, x = cases.build("linear")
    frozen = Snapshot(block, x)
    W, y = torch.randn(3, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    W.requires_grad_()
    found = frozen({"weight": W}, y)
    torch.testing.assert_close(found, y @ W.T + block.bias, rtol=1e-12, atol=1e-12)
    (found.sum()).backward()
    assert W.grad is not None
    assert block.weight.grad is None
    torch.testing.assert_close(frozen(inputs=(y,)), block(y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen(), block(x), rtol=1e-12, atol=1e-12)


class Doubles(nn.Module):
    """Works in place on its input."""

    def forward(self, x):
        return x.mul_(2)


@pytest.mark.parametrize("wrt", ["weight", "input"])
def test_blocks_that_overwrite_their_input(wrt):
    layer, x = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    kept = x.clone()
    H = lh.LocalHessian(nn.Sequential(Doubles(), layer), x, wrt)
    for _ in range(2):
        H.snapshot()
    assert torch.equal(x, kept)
    expected = lh.LocalHessian(layer, 2 * x, wrt).dense() * (4 if wrt == "input" else 1)
    assert cases.relative_error(H.dense(), expected) < 1e-12


def test_torch_func_goes_through_train_mode_norms():
    """Running statistics would be written in place, which torch.func refuses."""
    block, x = cases.build("conv+bn")
    frozen = Snapshot(block, x)
    W = frozen.parameters["0.weight"]
    J = torch.func.jacrev(lambda W: frozen({"0.weight": W}))(W).reshape(-1, W.numel())
    assert cases.relative_error(J.T @ J, cases.dense_gauss_newton(block, x, "weight")) < 1e-12
    batched = torch.func.vmap(lambda W: frozen({"0.weight": W}))(torch.stack([W, 2 * W]))
    assert torch.allclose(batched[0], frozen.output)


def products(block, x, wrt):
    H = lh.LocalHessian(block, x, wrt)
    return H.dense()


@pytest.mark.parametrize("wrt", ["weight", "input"])
def test_under_no_grad_inference_mode_and_autocast(wrt):
    block, x = cases.build("attention")
    block, x = block.float(), x.float()
    expected = products(block, x, wrt)
    with torch.no_grad():
        assert torch.equal(products(block, x, wrt), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(products(block, x, wrt), expected)
    with torch.inference_mode():
        there, y = copy.deepcopy(block), x.clone()
        assert y.is_inference()
        assert next(there.parameters()).is_inference()
        assert torch.equal(products(there, y, wrt), expected)
        H = lh.LocalHessian(block, x, wrt)
        V = torch.randn(H.dim, 3)
        inside = H @ V
    torch.testing.assert_close(inside, expected @ V)
    assert torch.equal(H @ V, inside)  # an inference tensor, outside
    assert torch.equal(products(there, y, wrt), expected)


def test_frozen_parameters_are_weights_and_tied_ones_count_once():
    block = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    block[2].weight = block[0].weight
    x = torch.randn(5, 3, dtype=torch.float64)
    block.requires_grad_(False)
    H = lh.LocalHessian(block, x)
    assert H.snapshot.weight_names == ("0.weight",)

    def function(W):
        return torch.tanh(x @ W.T + block[0].bias) @ W.T + block[2].bias

    J = torch.func.jacrev(function)(block[0].weight.detach()).reshape(15, 9)
    assert cases.relative_error(H.dense(), J.T @ J) < 1e-12
    assert not any(p.requires_grad for p in block.parameters())


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_blocks(wrap):
    block = getattr(parametrizations, wrap)(nn.Linear(4, 3).double())
    x = torch.randn(5, 4, dtype=torch.float64)
    weight = copy.deepcopy(block).weight.detach()  # spectral_norm iterates when it is asked
    before = state_of(block)
    H = lh.LocalHessian(block, x, wrt="input")
    assert cases.relative_error(H.dense(), torch.kron(torch.eye(5), weight.T @ weight)) < 1e-12
    assert all(n.startswith("parametrizations.weight") for n in H.snapshot.weight_names)
    assert_same(before, state_of(block))
    found = lh.LocalHessian(block, x).dense()
    assert found.abs().max() > 0
    assert torch.linalg.eigvalsh(found)[0] > -1e-12 * found.abs().max()


def test_forward_hooks_belong_to_the_block_and_backward_hooks_do_not():
    x = torch.randn(5, 4)
    block = nn.Linear(4, 3, bias=False)
    expected = lh.LocalHessian(block, x).dense()
    block.register_forward_hook(lambda module, args, output: 2 * output)
    calls = []
    block.register_full_backward_hook(lambda *args: calls.append(args))
    block.weight.register_hook(lambda g: calls.append(g))
    torch.testing.assert_close(lh.LocalHessian(block, x).dense(), 4 * expected)
    assert not calls


class Cached(nn.Linear):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


def test_blocks_that_keep_their_last_output():
    block, x = Cached(4, 3, bias=False), torch.randn(5, 4)
    last = block(x)
    H = lh.LocalHessian(block, x)
    torch.testing.assert_close(H.dense(), torch.kron(torch.eye(3), x.T @ x))
    assert block.last is last


def test_compiled_blocks_are_taken_as_they_were():
    block, x = nn.Linear(4, 3), torch.randn(5, 4)
    H = lh.LocalHessian(torch.compile(block), x)
    assert torch.equal(H.dense(), lh.LocalHessian(block, x).dense())


class Draws(nn.Linear):
    """Multiplies by noise from generators that torch knows nothing of."""

    def forward(self, x):
        noise = torch.tensor(np.random.randn(x.shape[0], 1) + random.random(), dtype=x.dtype)
        return noise * super().forward(x)


def test_python_s_and_numpy_s_random_numbers_are_kept():
    block, x = Draws(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    before = random.getstate(), np.random.get_state()[1].tolist()
    H = lh.LocalHessian(block, x)
    dense = H.dense()
    assert torch.equal(H.snapshot(), H.snapshot.output)
    result = lh.back_matching([block], x, None, lambda z, _: z.square().sum(), lr=0.1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    z = block(x)  # draws what the evaluations saw
    noise = z.detach()[:, :1] / nn.functional.linear(x, block.weight, block.bias).detach()[:, :1]
    assert (
        cases.relative_error(dense, torch.kron(torch.eye(3), (noise * x).T @ (noise * x))) < 1e-12
    )
    z.square().sum().backward()
    expected = (block.weight - 0.1 * block.weight.grad).detach()
    torch.testing.assert_close(result[0].parameters["weight"], expected)


class OwnGenerator(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.own = np.random.default_rng(0)

    def forward(self, x):
        return super().forward(x) * self.own.random()


class Counts(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Shrinks(nn.Linear):
    def forward(self, x):
        self.weight.data.mul_(0.9)
        return super().forward(x)


@pytest.mark.parametrize("wrt", ["weight", "input"])
@pytest.mark.parametrize("block", [OwnGenerator(), Counts(4, 3), Shrinks(4, 3)])
def test_blocks_that_change_from_call_to_call_are_refused(block, wrt):
    before = state_of(block)
    H = lh.LocalHessian(block, torch.randn(5, 4), wrt)
    with pytest.raises(ValueError, match="gave another output when it was evaluated again"):
        H @ torch.ones(H.dim)
    assert_same(before, state_of(block))
