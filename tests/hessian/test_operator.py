"""LocalHessian as an operator: layouts, dense(), scipy, forms, repr."""

import sys

import hessian_cases as cases
import numpy as np
import pytest
import torch
from torch import nn

import lhkernels as lh
from lhkernels.hessian import symmetric

NAMES = ["linear", "conv+bn", "gelu mlp"]  # two with a closed form, one without
ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


@pytest.mark.parametrize("wrt", ["weight", "input"])
@pytest.mark.parametrize("name", NAMES)
def test_products_equal_the_dense_matrix_in_every_layout(name, wrt):
    block, x = cases.build(name, seed=5)
    H = lh.LocalHessian(block, x, wrt)
    n = H.dim
    assert H.shape == (n, n)
    assert isinstance(H.shape, torch.Size)
    D = H.dense()
    assert cases.relative_error(D, cases.dense_gauss_newton(block, x, wrt)) < 1e-9
    assert cases.relative_error(D, D.T) < 1e-12
    wide = torch.randn(2 * n, 9, dtype=torch.float64)
    layouts = {
        "contiguous": wide[:n].clone(),
        "transposed": torch.randn(4, n, dtype=torch.float64).T,
        "strided": wide[::2, ::3],
        "expanded": wide[:n, :1].expand(n, 3),
        "one column": wide[:n, :1],
        "vector": wide[:n, 0],
        "no columns": wide[:n, :0],
        "parameter": nn.Parameter(wide[:n]),
    }
    for layout, V in layouts.items():
        found = H @ V
        assert found.shape == V.shape, layout
        assert not found.requires_grad, layout
        torch.testing.assert_close(found, D @ V.detach(), rtol=1e-9, atol=1e-9, msg=layout)
    R = torch.randn(3, n, dtype=torch.float64)
    torch.testing.assert_close(H.product_rows(R), R @ D, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_vectors_are_not_changed(name):
    block, x = cases.build(name)
    H = lh.LocalHessian(block, x)
    V = torch.randn(H.dim, 3, dtype=torch.float64)
    kept = V.clone()
    product = H @ V
    assert torch.equal(V, kept)
    product.zero_()
    assert torch.equal(V, kept)
    assert (H @ V).abs().max() > 0


def test_dense_in_several_chunks_and_its_limit(monkeypatch):
    block, x = cases.build("gelu mlp")
    H = lh.LocalHessian(block, x)
    D = H.dense()
    monkeypatch.setattr(symmetric, "IDENTITY_BYTES", 4 * 8 * H.dim)  # 35 rows, four at a time
    torch.testing.assert_close(H.dense(), D, rtol=1e-12, atol=1e-12)
    bytes_needed = 8 * H.dim**2
    assert H.dense(max_bytes=bytes_needed).shape == H.shape
    with pytest.raises(ValueError, match=f"would take {bytes_needed} bytes.*max_bytes=100"):
        H.dense(max_bytes=100)


def test_large_operators_are_not_made_dense_by_mistake():
    block = nn.Sequential(nn.Linear(400, 100, bias=False), nn.Tanh())
    H = lh.LocalHessian(block, torch.randn(2, 400), form="autograd")
    with pytest.raises(ValueError, match=r"40000 x 40000.*6400000000 bytes"):
        H.dense(max_bytes=1 << 30)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipy(name, dtype):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    block, x = cases.build(name)
    H = lh.LocalHessian(block.to(dtype), x.to(dtype), wrt="input")
    A, D = H.to_scipy(), H.dense().numpy()
    assert A.shape == D.shape
    assert A.dtype == D.dtype
    assert type(A.shape) is tuple
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    for v in (np.ones(H.dim), np.ones((H.dim, 1), np.float32), np.eye(H.dim)[:, ::-2]):
        found = A @ v
        assert isinstance(found, np.ndarray)
        assert found.shape == v.shape
        np.testing.assert_allclose(found, D @ v, rtol=tolerance, atol=tolerance * abs(D).max())
        np.testing.assert_allclose(A.T @ v, D.T @ v, atol=10 * tolerance * abs(D).max())
    rng = np.random.default_rng(0)
    top = linalg.eigsh(A, k=2, v0=rng.standard_normal(H.dim), return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(top), np.linalg.eigvalsh(D)[-2:], rtol=10 * tolerance)
    with pytest.raises(TypeError, match="complex128"):
        A @ np.ones(H.dim, dtype=complex)


def test_scipy_with_half_precision():
    pytest.importorskip("scipy")
    H = lh.LocalHessian(nn.Linear(3, 2, dtype=torch.bfloat16), torch.ones(4, 3).bfloat16())
    A = H.to_scipy()
    assert A.dtype == np.float32
    np.testing.assert_array_equal(A @ np.ones(6), np.full(6, 12.0))


def test_scipy_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    H = lh.LocalHessian(nn.Linear(3, 2), torch.randn(4, 3))
    with pytest.raises(ImportError, match=r"pip install lhkernels\[hessian\]"):
        H.to_scipy()


def test_full_hessian_of_a_layer_is_its_gauss_newton():
    block, x = cases.build("conv")
    r = torch.randn_like(block(x))
    H = lh.LocalHessian(block, x, "weight", "full", r)
    assert H.form != "autograd"
    assert cases.relative_error(H.dense(), cases.dense_full(block, x, "weight", r)) < 1e-9


def test_output_grad_is_copied():
    block, x = cases.build("linear+tanh")
    r = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    H = lh.LocalHessian(block, x, "weight", "full", r)
    expected = cases.dense_full(block, x, "weight", r.detach().clone())
    with torch.no_grad():
        r.zero_()
    assert cases.relative_error(H.dense(), expected) < 1e-9


@pytest.mark.parametrize("form", ["auto", "gram", "factored", "autograd"])
def test_forms_agree(form):
    block, x = cases.build("conv+bn")
    H = lh.LocalHessian(block, x, form=form)
    assert H.form == form
    assert cases.relative_error(H.dense(), cases.dense_gauss_newton(block, x, "weight")) < 1e-9


def test_repr_is_one_line():
    H = lh.LocalHessian(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), torch.randn(4, 3))
    assert repr(H) == (
        "LocalHessian(Sequential, wrt='weight', kind='gauss_newton', form='autograd', dim=6, "
        "dtype=torch.float32, device='cpu')"
    )


@pytest.mark.parametrize("name", cases.BLOCKS)
@pytest.mark.parametrize("wrt", ["weight", "input"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_on_a_gpu(name, wrt, device):
    block, x = cases.build(name)
    if name == "dropout":
        block.eval()  # the two devices draw different masks
    expected = cases.dense_gauss_newton(block, x, wrt)
    H = lh.LocalHessian(block.to(device), x.to(device), wrt)
    assert H.device == x.to(device).device
    assert cases.relative_error(H.dense().cpu(), expected) < 1e-9
    v = np.ones(H.dim)
    np.testing.assert_allclose(
        H.to_scipy() @ v, expected.detach().numpy() @ v, rtol=1e-7, atol=1e-7
    )
