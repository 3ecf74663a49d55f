"""Closed forms against J^T J from autograd, float64, on random layers, in C++ and in Python."""

import copy
import random

import pytest
import torch
from hessian_cases import dense_gauss_newton, relative_error
from torch import nn

from lhkernels import _extension, ops
from lhkernels.hessian import LocalHessian, closed_forms, patches

FORMS = ("gram", "factored", "auto")
KERNELS = [
    pytest.param(patches, id="python"),
    pytest.param(
        ops,
        id="cpp",
        marks=pytest.mark.skipif(
            _extension.reason() is not None, reason=f"no C++ extension: {_extension.reason()}"
        ),
    ),
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=KERNELS)
def kernels(request, monkeypatch):
    monkeypatch.setattr(closed_forms, "kernels", lambda: request.param)


def random_layer(rng, spatial):
    """A linear layer (spatial 0) or a convolution with every option drawn at random, and inputs."""
    groups = rng.choice([1, 1, 2, 3]) if spatial else 1
    c_in = groups * rng.choice([1, 2, 3] if spatial < 2 else [1, 2])  # the dense matrix is small
    c_out = groups * rng.choice([1, 2])
    bias = rng.random() < 0.5
    samples = rng.choice([3, 4, 5])
    if not spatial:
        c_in += 2
        return nn.Linear(c_in, c_out, bias, dtype=torch.float64), 1 + torch.randn(
            samples, c_in, dtype=torch.float64
        )
    size = [rng.choice([3, 4, 5] if spatial < 3 else [2, 3]) for _ in range(spatial)]
    kernel = tuple(rng.choice([1, 2, 3] if spatial < 3 else [1, 2]) for _ in range(spatial))
    same = rng.random() < 0.3
    conv = getattr(nn, f"Conv{spatial}d")(
        c_in,
        c_out,
        kernel,
        stride=1 if same else tuple(rng.choice([1, 2]) for _ in range(spatial)),
        padding="same" if same else tuple(rng.choice([0, 1]) for _ in range(spatial)),
        dilation=rng.choice([1, 2]) if max(kernel) < 3 else 1,
        groups=groups,
        padding_mode=rng.choice(["zeros", "zeros", "circular", "replicate"]),
        bias=bias,
        dtype=torch.float64,
    )
    return conv, 0.5 + torch.randn(samples, c_in, *size, dtype=torch.float64)


def with_norm(rng, layer, spatial, mode):
    """The layer, followed by a batch norm in train or eval mode unless ``mode`` is None."""
    if mode is None:
        return layer
    norm = getattr(nn, f"BatchNorm{max(spatial, 1)}d")(
        layer.weight.shape[0],
        eps=rng.choice([1e-5, 0.1, 1.0]),
        affine=rng.random() < 0.8,
        dtype=torch.float64,
    )
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    block = nn.Sequential(layer, norm)
    return block.eval() if mode == "eval" else block


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.1e}"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wrt", ["weight", "input"])
@pytest.mark.parametrize("norm", [None, "train", "eval"])
@pytest.mark.parametrize("spatial", [0, 1, 2, 3])
def test_every_form_is_the_dense_matrix(spatial, norm, wrt):
    rng = random.Random(f"{spatial} {norm} {wrt}")
    compared = 0
    for _ in range(12):
        layer, x = random_layer(rng, spatial)
        block = with_norm(rng, layer, spatial, norm)
        try:
            block(x)
        except (RuntimeError, ValueError):
            continue  # the kernel is larger than the input, or one value for a channel
        expected = dense_gauss_newton(block, x, wrt)
        for form in FORMS if wrt == "weight" else FORMS[1:]:
            try:
                H = LocalHessian(block, x, wrt, form=form, memory_limit=rng.choice([None, 1, 3000]))
            except ValueError:
                assert norm == "train"  # of too few values for a closed form
                assert form != "auto"
                continue
            V = torch.randn(H.dim, 3, dtype=torch.float64)
            assert_close(H @ V, expected @ V)
            assert_close(H @ V[:, 1], expected @ V[:, 1])
            assert_close(H.dense(), expected)
            trace = H.known_trace()
            if trace is not None:
                assert_close(trace, expected.trace())
            assert_spectrum(H, expected)
            compared += H.form != "autograd"
    assert compared >= 6


def assert_spectrum(H, expected):
    """The eigenvalues of the blocks, each as often as it says, are the matrix's."""
    blocks = H.spectral_blocks()
    if blocks is None:
        return
    values = []
    for block in blocks:
        matrix = block.matrix.mH @ block.matrix if block.is_factor else block.matrix
        values += [torch.linalg.eigvalsh(matrix).flatten()] * block.multiplicity
    assert_close(torch.cat(values).sort().values, torch.linalg.eigvalsh(expected))


BIASED = {  # a batch norm in train mode behind each
    "linear": (lambda: nn.Linear(7, 5), (33, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (9, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (2, 3), dilation=(1, 2)), (8, 3, 6, 7)),
    "zero padding": (lambda: nn.Conv2d(2, 4, 3, stride=(1, 2), padding=1, groups=2), (7, 2, 6, 5)),
    "same": (lambda: nn.Conv1d(3, 4, 3, padding="same"), (6, 3, 9)),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (4, 3, 5, 6)),
}


def biased(name, mean):
    """A block with a batch norm in train mode, and inputs of that mean, both float32."""
    make, shape = BIASED[name]
    layer = make()
    norm = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    return nn.Sequential(layer, norm(layer.weight.shape[0])), mean + torch.randn(shape)


@pytest.mark.parametrize("wrt", ["weight", "input"])
@pytest.mark.parametrize("mean", [0, 1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("name", BIASED)
def test_a_large_mean_of_the_inputs_costs_no_digits(name, mean, wrt):
    block, x = biased(name, mean)
    expected = dense_gauss_newton(copy.deepcopy(block).double(), x.double(), wrt)
    for form in ("gram", "factored") if wrt == "weight" else ("factored",):
        H = LocalHessian(block, x, wrt, form=form)
        assert_close(H.dense(), expected, 2e-6)
        assert_close(H.trace(), expected.trace(), 1e-6)
        blocks = H.spectral_blocks()
        if blocks is not None:
            values = torch.cat([torch.linalg.eigvalsh(b.matrix).flatten() for b in blocks])
            assert_close(values.sort().values, torch.linalg.eigvalsh(expected), 1e-6)


@pytest.mark.parametrize("mean", [0, 1e3, 1e5])
@pytest.mark.parametrize("name", BIASED)
def test_a_large_mean_and_the_approximation(name, mean):
    block, x = biased(name, mean)
    for wrt in ("weight", "input"):
        H = LocalHessian(block, x, wrt, approximate=True)
        double = copy.deepcopy(block).double()
        expected = LocalHessian(double, x.double(), wrt, approximate=True)
        assert_close(H.dense(), expected.dense(), 1e-6)
        assert_close(H.trace(), expected.trace(), 1e-6)


@pytest.mark.usefixtures("kernels")
def test_trace_and_spectrum_where_the_norm_takes_nearly_all_away():
    """One direction has 10^4 times the variance of the others, and w is almost along it."""
    block, _ = biased("linear", 0)
    x = torch.randn(33, 7) + 100 * torch.randn(33, 1)
    expected = dense_gauss_newton(copy.deepcopy(block).double(), x.double(), "weight")
    H = LocalHessian(block, x, form="gram")
    H @ torch.ones(H.dim)  # float32 factors are there
    assert_close(H.trace(), expected.trace(), 2e-6)
    values = torch.cat([torch.linalg.eigvalsh(b.matrix).flatten() for b in H.spectral_blocks()])
    assert_close(values.sort().values, torch.linalg.eigvalsh(expected), 2e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("spatial", [0, 1, 2])
def test_the_paper_s_approximation(spatial):
    """(17)-(18): sum_i w_i w_i^T / Var[z_i] for the input, sum_j x_j x_j^T / Var[z_i] for row i."""
    rng = random.Random(spatial)
    for _ in range(4):
        layer, x = random_layer(rng, spatial)
        if spatial:
            layer = type(layer)(layer.in_channels, 3, 2, padding=1, dtype=torch.float64)
        block = nn.Sequential(
            layer,
            getattr(nn, f"BatchNorm{max(spatial, 1)}d")(
                layer.weight.shape[0], eps=0.3, affine=False, dtype=torch.float64
            ),
        )
        z = layer(x).detach().transpose(0, 1).flatten(1)
        root = (z.var(1, correction=0) + 0.3).rsqrt()
        for wrt in ("weight", "input"):
            plain = copy.deepcopy(layer)
            if wrt == "input":
                plain.weight.data *= root.view(-1, *(1,) * (1 + spatial))
            expected = dense_gauss_newton(plain, x, wrt)
            if wrt == "weight":
                each = root.repeat_interleave(layer.weight[0].numel())
                expected = each[:, None] * expected * each
            H = LocalHessian(block, x, wrt, approximate=True)
            assert_close(H.dense(), expected)
            assert_close(H.trace(), expected.trace())
            assert_spectrum(H, expected)


def test_what_the_approximation_drops():
    """Of the input's trace a share of 1/m; of each row of the weight one direction, for any m."""
    norm, layer = nn.BatchNorm1d(3, eps=1e-12, affine=False), nn.Linear(4, 3)
    block = nn.Sequential(layer, norm).double()
    w = layer.weight.detach()
    shares = []
    for samples in (20, 2000):
        x = torch.randn(samples, 4, dtype=torch.float64)
        exact = LocalHessian(block, x, "input").trace()
        shares.append(1 - exact / LocalHessian(block, x, "input", approximate=True).trace())
        # The output does not depend on the rows' lengths, so H has a zero there ...
        assert (LocalHessian(block, x) @ w.flatten()).norm() < 1e-9 * samples * w.norm()
        # ... that the approximation has not.
        approximate = LocalHessian(block, x, approximate=True)
        assert w.flatten() @ (approximate @ w.flatten()) > 0.9 * 3 * samples
    assert 0 < shares[1] < shares[0] / 50


@pytest.mark.usefixtures("kernels")
def test_auto_chooses_by_operation_count_and_keeps_the_gram_matrix():
    few_places = LocalHessian(nn.Conv2d(64, 8, 3), torch.randn(2, 64, 4, 4))
    many_places = LocalHessian(nn.Conv2d(2, 8, 3), torch.randn(16, 2, 12, 12))
    for H, form in ((few_places, "factored"), (many_places, "gram")):
        assert H.form == "auto"
        H @ torch.randn(H.dim, 16)
        assert H.form == form
    layer, x = nn.Linear(64, 32), torch.randn(48, 64)
    H = LocalHessian(layer, x)
    V = torch.randn(H.dim, 1)
    first = H @ V
    assert_close(H @ V, first, 1e-5)
    wide = LocalHessian(nn.Linear(40, 500), torch.randn(30, 40), memory_limit=100)
    wide @ torch.randn(wide.dim, 16)
    assert wide.form == "factored"  # the Gram matrix would be larger than the limit


def test_the_form_is_that_of_the_last_product(monkeypatch):
    """One vector isn't worth a Gram matrix; with the vectors that follow it is."""
    H = LocalHessian(nn.Linear(64, 4), torch.randn(640, 64))
    calls = []
    for name in ("gram_hvp", "patch_hvp"):
        original = getattr(patches, name)

        def noted(*args, name=name, original=original):
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(patches, name, noted)
    monkeypatch.setattr(closed_forms, "kernels", lambda: patches)
    forms = []
    for columns in (1, 1, 16, 1):
        H @ torch.randn(H.dim, columns)
        forms.append(H.form)
    assert [{"gram": "gram_hvp", "factored": "patch_hvp"}[form] for form in forms] == calls
    assert forms == ["factored", "factored", "gram", "gram"]
    assert LocalHessian(nn.Linear(64, 32), torch.randn(640, 64), form="gram").form == "gram"


def test_closed_form_sees_the_mode_and_hooks():
    x = torch.randn(6, 4)
    block = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert LocalHessian(block, x).form != "autograd"
    block[0].register_forward_hook(lambda module, args, out: 2 * out)
    assert LocalHessian(block, x).form == "autograd"  # what the hook does is not known
    assert LocalHessian(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), x).form == "autograd"
    linear, g = nn.Linear(4, 3), torch.randn(6, 3)
    assert LocalHessian(linear, x, kind="full", output_grad=g).form != "autograd"
    normed = nn.Sequential(linear, nn.BatchNorm1d(3))
    assert LocalHessian(normed, x, kind="full", output_grad=g).form == "autograd"


def test_errors_name_the_remedy():
    x = torch.randn(6, 4)
    block = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="eval mode"):
        LocalHessian(copy.deepcopy(block).eval(), x, approximate=True)
    with pytest.raises(ValueError, match="approximate=False"):
        LocalHessian(nn.Linear(4, 3), x, approximate=True)
    with pytest.raises(ValueError, match="form='auto'"):
        LocalHessian(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), x, form="gram")
    with pytest.raises(ValueError, match="form='factored'"):
        LocalHessian(block, x, "input", form="gram")


@pytest.mark.parametrize("normed", [False, True])
def test_a_further_parameter_has_its_rows(normed):
    """A closed form knows of one weight; the other's rows are zero."""
    layer, x = nn.Linear(4, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    block = nn.Sequential(layer, nn.BatchNorm1d(3, dtype=torch.float64)) if normed else layer
    expected = dense_gauss_newton(block, x, "weight")
    layer.extra = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
    H = LocalHessian(block, x)
    assert H.dim == 12 + 6
    dense = H.dense()
    assert_close(dense[:12, :12], expected)
    assert not dense[12:].any()
    assert not dense[:, 12:].any()
    assert LocalHessian(block, x, "input").form != "autograd"


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 5, 5)),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm2d(3)), (6, 4)),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(1)), (6, 4)),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (1, 4)),
        (nn.Conv2d(3, 4, 7), (2, 3, 5, 5)),
        (nn.Linear(1, 4), ()),
    ],
)
@pytest.mark.parametrize("wrt", ["weight", "input"])
def test_what_the_module_refuses_is_refused(block, shape, wrt):
    x = torch.randn(shape)
    with pytest.raises((RuntimeError, ValueError)) as ours:
        LocalHessian(block, x, wrt)
    with pytest.raises(type(ours.value)):
        block(x)
