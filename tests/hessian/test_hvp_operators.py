"""torch.ops.lhkernels' products for closed forms: their schemas, and values like Python's."""

import pytest
import torch
from hessian_cases import relative_error

from lhkernels import _extension, ops
from lhkernels.hessian import patches


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
        found = getattr(torch.ops.lhkernels, name)(*args)
        assert found.shape == same.shape
        assert relative_error(found, same) <= tolerance
