"""Products by autograd against dense matrices from torch.func, in float64."""

import copy

import hessian_cases as cases
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lhkernels as lh
from lhkernels.hessian import autograd

KINDS = ("gauss_newton", "full")


def dense_both(block, x, wrt, kind, seed=3):
    """The operator by autograd, and the matrix that it should be."""
    twin = copy.deepcopy(block)
    if kind == "gauss_newton":
        H = lh.LocalHessian(block, x, wrt, form="autograd")
        return H, cases.dense_gauss_newton(twin, x, wrt)
    generator = torch.Generator().manual_seed(seed)
    rng = torch.get_rng_state()
    z = copy.deepcopy(block)(x.clone())
    torch.set_rng_state(rng)
    r = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    H = lh.LocalHessian(block, x, wrt, "full", r, form="autograd")
    return H, cases.dense_full(twin, x, wrt, r)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrt", ["weight", "input"])
@pytest.mark.parametrize("name", cases.BLOCKS)
def test_equals_the_dense_matrix(name, wrt, kind):
    block, x = cases.build(name, seed=11)
    H, expected = dense_both(block, x, wrt, kind)
    assert cases.relative_error(H.dense(), expected) < 1e-9
    assert cases.relative_error(H.dense(), H.dense().T) < 1e-12
    V = torch.randn(H.dim, 5, dtype=torch.float64)
    looped = torch.stack([H @ v for v in V.T], dim=1)  # one vector is never batched
    assert cases.relative_error(looped, expected @ V) < 1e-9


def test_the_two_kinds_differ_where_the_block_is_curved():
    block, x = cases.build("linear+tanh")
    full, expected = dense_both(block, x, "weight", "full")
    gauss_newton, _ = dense_both(block, x, "weight", "gauss_newton")
    assert cases.relative_error(gauss_newton.dense(), expected) > 1e-2
    # The residual enters linearly: H(2 g) - H(g) = H(g) - H(0), and H(0) is Gauss-Newton.
    r = full._form.output_grad
    twice = lh.LocalHessian(block, x, "weight", "full", 2 * r)
    assert cases.relative_error(twice.dense(), 2 * expected - gauss_newton.dense()) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_in_a_loop_and_in_small_chunks(kind, monkeypatch):
    block, x = cases.build("gelu mlp")
    H, expected = dense_both(block, x, "weight", kind)
    V = torch.randn(H.dim, 7, dtype=torch.float64)
    sizes = []
    original = autograd.AutogradForm._chunk

    def noted(self, rows):
        sizes.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(autograd.AutogradForm, "_chunk", noted)
    r = None if kind == "gauss_newton" else H._form.output_grad
    per_row = 8 * (6 * 20 + 3 * H.dim)  # its widest tensor is the weight of 5 x 4
    for limit, most in ((1, 1), (3 * per_row, 3), (None, 7)):
        sizes.clear()
        H = lh.LocalHessian(block, x, "weight", kind, r, form="autograd", memory_limit=limit)
        assert cases.relative_error(H @ V, expected @ V) < 1e-9
        assert sum(sizes) == 7
        assert max(sizes) == most
    monkeypatch.setattr(autograd, "CPU_BATCHING_LIMIT", 0)
    H = lh.LocalHessian(block, x, "weight", kind, r, form="autograd")
    assert cases.relative_error(H @ V, expected @ V) < 1e-9


class Cube(torch.autograd.Function):
    """Python code that can't be batched: it looks at values."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        Cube.calls += 1
        (x,) = ctx.saved_tensors
        return CubeGrad.apply(x, g)


class CubeGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g):
        ctx.save_for_backward(x, g)
        assert float(g.sum()) < 1e300
        return 3 * x**2 * g

    @staticmethod
    def backward(ctx, h):
        x, g = ctx.saved_tensors
        assert float(h.sum()) < 1e300
        return 6 * x * g * h, 3 * x**2 * h


class WithCube(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x):
        return Cube.apply(self.layer(x))


class PlainCube(WithCube):
    def forward(self, x):
        return self.layer(x) ** 3


@pytest.mark.parametrize("kind", KINDS)
def test_operations_without_a_batching_rule_are_looped_over_from_then_on(kind):
    block, x = WithCube(), torch.randn(4, 3, dtype=torch.float64)
    r = None if kind == "gauss_newton" else torch.randn(4, 2, dtype=torch.float64)
    H = lh.LocalHessian(block, x, "weight", kind, r)
    plain = PlainCube()
    plain.load_state_dict(block.state_dict())
    expected = lh.LocalHessian(plain, x, "weight", kind, r).dense()
    assert cases.relative_error(H.dense(), expected) < 1e-12
    assert H._form._batched is False
    assert cases.relative_error(H.dense(), expected) < 1e-12


class Checkpointed(nn.Module):
    def __init__(self, reuse):
        super().__init__()
        self.a = nn.Linear(4, 5, dtype=torch.float64)
        self.b = nn.Linear(5, 3, dtype=torch.float64)
        self.reuse = reuse

    def forward(self, x):
        def first(y):
            return torch.tanh(self.a(y))

        y = checkpoint(first, x, use_reentrant=False) if self.reuse else first(x)
        return self.b(y.square())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrt", ["weight", "input"])
def test_activation_checkpoints(wrt, kind):
    x = torch.randn(3, 4, dtype=torch.float64)
    r = None if kind == "gauss_newton" else torch.randn(3, 3, dtype=torch.float64)
    block, plain = Checkpointed(True), Checkpointed(False)
    plain.load_state_dict(block.state_dict())
    found = lh.LocalHessian(block, x, wrt, kind, r).dense()
    assert cases.relative_error(found, lh.LocalHessian(plain, x, wrt, kind, r).dense()) < 1e-12


class Detached(nn.Module):
    """One weight that the output depends on linearly, one that it doesn't depend on."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.randn(2, 2))
        self.scale = nn.Parameter(torch.randn(1, 3))

    def forward(self, x):
        return x.detach() * self.scale


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_output_does_not_depend_on_gets_zeros(kind):
    x = torch.randn(4, 3)
    r = None if kind == "gauss_newton" else torch.randn(4, 3)
    H = lh.LocalHessian(Detached(), x, "weight", kind, r)
    expected = torch.zeros(7, 7)
    expected[4:, 4:] = torch.diag(x.square().sum(0))
    torch.testing.assert_close(H.dense(), expected)
    assert not lh.LocalHessian(Detached(), x, "input", kind, r).dense().any()


def test_several_inputs_and_integer_inputs():
    block = nn.Bilinear(3, 4, 2).double()
    a, b = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    H = lh.LocalHessian(block, (a, b), wrt="input")
    Ja, Jb = torch.func.jacrev(lambda a, b: block(a, b), (0, 1))(a, b)
    J = torch.cat([Ja.reshape(10, -1), Jb.reshape(10, -1)], 1)
    assert cases.relative_error(H.dense(), J.T @ J) < 1e-9
    words = torch.tensor([0, 2, 2, 5])
    H = lh.LocalHessian(nn.Embedding(6, 2), words)
    counts = torch.bincount(words, minlength=6).float()
    torch.testing.assert_close(H.dense(), torch.diag(counts.repeat_interleave(2)))


def test_recurrent_blocks():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(2, 3, dtype=torch.float64)

        def forward(self, x):
            return self.rnn(x)[0]

    block, x = Last(), torch.randn(4, 2, 2, dtype=torch.float64)
    H = lh.LocalHessian(block, x, wrt="input")
    J = torch.autograd.functional.jacobian(block, x).reshape(-1, x.numel())
    assert cases.relative_error(H.dense(), J.T @ J) < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    block, x = cases.build("gelu mlp")
    block, x = block.to(dtype), x.to(dtype)
    H = lh.LocalHessian(block, x)
    expected = cases.dense_gauss_newton(block.double(), x.double(), "weight")
    assert H.form == "autograd"
    assert H.dense().dtype == dtype
    assert cases.relative_error(H.dense().double(), expected) < 8 * torch.finfo(dtype).eps


def test_an_operation_that_cannot_be_differentiated_twice_says_so():
    H = lh.LocalHessian(nn.EmbeddingBag(7, 3), torch.tensor([[0, 1], [2, 3]]))
    with pytest.raises(RuntimeError, match=r"can't be differentiated twice.*embedding_bag"):
        H @ torch.ones(21)
