"""Closed forms against J^T J from autograd, float64, on random layers, in C++ and in Python."""

import copy
import random

import pytest
import torch
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


def gauss_newton(block, x, wrt):
    """J^T J, written without the library."""
    block = copy.deepcopy(block)
    for part in block.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            part.running_mean = part.running_var = part.num_batches_tracked = None
    name, weight = next((n, p.detach()) for n, p in block.named_parameters() if p.ndim >= 2)
    if wrt == "weight":

        def forward(w):
            return torch.func.functional_call(block, {name: w}, (x,))

        point = weight
    else:
        forward, point = block, x
    jacobian = torch.func.jacrev(forward)(point).detach().reshape(-1, point.numel())
    return jacobian.T @ jacobian


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
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
        expected = gauss_newton(block, x, wrt)
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
            trace = H.closed_form and H.closed_form.trace()
            if trace is not None:
                assert_close(trace, expected.trace())
            assert_spectrum(H, expected)
            compared += H.form != "autograd"
    assert compared >= 6


def assert_spectrum(H, expected):
    """The eigenvalues of the blocks, each as often as it says, are the matrix's."""
    blocks = H.closed_form.spectral_blocks() if H.closed_form is not None else None
    if blocks is None:
        return
    values = []
    for block in blocks:
        matrix = block.matrix.mH @ block.matrix if block.is_factor else block.matrix
        values += [torch.linalg.eigvalsh(matrix).flatten()] * block.multiplicity
    assert_close(torch.cat(values).sort().values, torch.linalg.eigvalsh(expected))


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
            expected = gauss_newton(plain, x, wrt)
            if wrt == "weight":
                each = root.repeat_interleave(layer.weight[0].numel())
                expected = each[:, None] * expected * each
            H = LocalHessian(block, x, wrt, approximate=True)
            assert_close(H.dense(), expected)
            assert_close(H.trace(), expected.trace())
            assert_spectrum(H, expected)


def test_what_the_approximation_drops():
    """Of the input's trace a share of 1/m; of each row of the weight one direction, for any m."""
    norm, layer = nn.BatchNorm1d(3, eps=0, affine=False), nn.Linear(4, 3)
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
    assert (few_places.form, many_places.form) == ("factored", "gram")
    layer, x = nn.Linear(64, 32), torch.randn(48, 64)
    H = LocalHessian(layer, x)
    V = torch.randn(H.dim, 1)
    first = H @ V
    assert_close(H @ V, first, 1e-5)
    wide = LocalHessian(nn.Linear(40, 500), torch.randn(30, 40), memory_limit=100)
    assert wide.form == "factored"  # the Gram matrix would be larger than the limit


def test_closed_form_sees_the_mode_and_hooks():
    x = torch.randn(6, 4)
    block = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert LocalHessian(block, x).closed_form is not None
    block[0].register_forward_hook(lambda module, args, out: 2 * out)
    assert LocalHessian(block, x).closed_form is None  # what the hook does is not known
    assert LocalHessian(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), x).closed_form is None
    linear, g = nn.Linear(4, 3), torch.randn(6, 3)
    assert LocalHessian(linear, x, kind="full", output_grad=g).closed_form is not None
    normed = nn.Sequential(linear, nn.BatchNorm1d(3))
    assert LocalHessian(normed, x, kind="full", output_grad=g).closed_form is None


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
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        LocalHessian(block, x[:1])


@pytest.mark.skipif(_extension.reason() is not None, reason="no C++ extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_are_well_formed(dtype):
    x = torch.randn(3, 4, 6, 5, dtype=dtype)
    weight = torch.randn(6, 2, 3, 2, dtype=dtype)
    geometry = patches.Geometry((3, 2), (2, 1), (1, 0), (1, 2), 2)
    mean = patches.mean(x, geometry)
    rows = torch.randn(5, 6, 12, dtype=dtype)
    scale, direction = torch.rand(6, dtype=dtype), torch.randn(6, 12, dtype=dtype)
    gram = ops.patch_gram(x, geometry, mean, 1 << 20)
    inputs = torch.randn(2, *x.shape, dtype=dtype)
    places = torch.randn(3, 6, *geometry.output_size(x.shape[2:]), dtype=dtype)
    lists = [list(numbers) for numbers in geometry[:4]]
    calls = {
        "patch_gram": (x, *lists, 2, mean, 1 << 20),
        "gram_hvp": (gram, rows, scale, direction, 1 << 20),
        "patch_hvp": (x, *lists, 2, mean, rows, scale, direction, 1 << 20),
        "input_hvp": (inputs, weight, *lists, 2, scale, places, 1 << 20),
    }
    tests = ("test_schema", "test_faketensor")
    for name, args in calls.items():
        torch.library.opcheck(getattr(torch.ops.lhkernels, name).default, args, test_utils=tests)
        same = {
            "patch_gram": lambda: patches.patch_gram(x, geometry, mean, 1 << 20),
            "gram_hvp": lambda: patches.gram_hvp(gram, rows, scale, direction, 1 << 20),
            "patch_hvp": lambda: patches.patch_hvp(
                x, geometry, mean, rows, scale, direction, 1 << 20
            ),
            "input_hvp": lambda: patches.input_hvp(
                inputs, weight, geometry, scale, places, 1 << 20
            ),
        }[name]()
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        assert_close(getattr(torch.ops.lhkernels, name)(*args), same, tolerance)
