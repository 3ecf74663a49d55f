"""Bad input: the error names the argument, the value and the remedy."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

import lhkernels as lh
from lhkernels.hessian.snapshot import Snapshot


def operator(**changes):
    """A LocalHessian that can be built, but for the changes."""
    arguments = {"module": nn.Sequential(nn.Linear(4, 3), nn.Tanh()), "inputs": torch.randn(5, 4)}
    return lh.LocalHessian(**{**arguments, **changes})


class Two(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Gives(nn.Linear):
    """Returns whatever it was given."""

    def __init__(self, what):
        super().__init__(4, 3)
        self.what = what

    def forward(self, x):
        return self.what


def with_nan():
    block = nn.Linear(4, 3)
    with torch.no_grad():
        block.weight[1, 2] = float("nan")
    return block


def uncopyable():
    block = nn.Linear(4, 3)
    block.lock = threading.Lock()
    return block


META = torch.device("meta")
NORM = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

BAD = {
    "module": ({"module": lambda x: x}, TypeError, "module must be an nn.Module, got function"),
    "numpy inputs": ({"inputs": np.ones((5, 4))}, TypeError, "inputs must be a tensor .*ndarray"),
    "no inputs": ({"inputs": ()}, ValueError, "inputs is empty"),
    "input of a tuple": ({"inputs": (None,)}, TypeError, r"inputs\[0\] must be .* NoneType"),
    "empty": ({"inputs": torch.ones(0, 4)}, ValueError, r"inputs has no elements .*\(0, 4\)"),
    "nan": ({"inputs": torch.full((5, 4), torch.nan)}, ValueError, "inputs has NaN or infinite"),
    "inf": ({"inputs": torch.full((5, 4), -torch.inf)}, ValueError, "inputs has NaN or infinite"),
    "complex": ({"inputs": torch.ones(5, 4) * 1j}, ValueError, "inputs is complex"),
    "complex weight": (
        {"module": nn.Linear(4, 3, dtype=torch.complex64)},
        ValueError,
        "parameter 'weight' is complex",
    ),
    "nan weight": ({"module": with_nan()}, ValueError, "parameter 'weight' has NaN"),
    "lazy": ({"module": nn.LazyLinear(3)}, ValueError, "'weight' is not initialised: call"),
    "uncopyable": (
        {"module": uncopyable()},
        ValueError,
        "Linear can't be copied by copy.deepcopy",
    ),
    "device": (
        {"module": nn.Linear(4, 3, device=META)},
        ValueError,
        r"parameter 'weight' is on meta, inputs\[0\] on cpu: move",
    ),
    "tuple": ({"module": Two(4, 3)}, TypeError, "returned a tuple, not a tensor: wrap it"),
    "dict": ({"module": Gives({"a": 1})}, TypeError, "returned a dict, not a tensor: wrap it"),
    "integers": (
        {"module": Gives(torch.ones(3, dtype=torch.int64))},
        TypeError,
        "output must be a real floating-point tensor, got torch.int64",
    ),
    "no weight": ({"module": nn.ReLU()}, ValueError, "ReLU has no parameter with ndim >= 2"),
    "no matrix": ({"module": nn.LayerNorm(4)}, ValueError, "no parameter with ndim >= 2: use wrt"),
    "wrt of integers": (
        {"module": nn.Embedding(4, 3), "inputs": torch.tensor([1, 2]), "wrt": "input"},
        ValueError,
        r"wrt='input' needs floating-point tensors, inputs\[0\] has torch.int64",
    ),
    "mixed dtypes": (
        {"module": nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double())},
        ValueError,
        "one dtype: parameter '0.weight' has torch.float32, parameter '1.weight' has torch.float64",
    ),
    "wrt": ({"wrt": "weights"}, ValueError, "wrt must be one of 'weight', 'input', got 'weights'"),
    "kind": ({"kind": "fisher"}, ValueError, "kind must be one of 'gauss_newton', 'full', got"),
    "form": ({"form": "fast"}, ValueError, "form must be one of 'auto', .* got 'fast'"),
    "memory 0": ({"memory_limit": 0}, ValueError, "memory_limit must be a positive .*, got 0"),
    "memory 1.5": ({"memory_limit": 1.5}, TypeError, "memory_limit must be .* or None, got 1.5"),
    "no output_grad": ({"kind": "full"}, ValueError, "kind='full' needs output_grad"),
    "output_grad of numpy": (
        {"kind": "full", "output_grad": np.ones((5, 3))},
        TypeError,
        "output_grad must be a tensor, got ndarray",
    ),
    "shape of output_grad": (
        {"kind": "full", "output_grad": torch.ones(3, 5)},
        ValueError,
        r"output_grad has shape torch.Size\(\[3, 5\]\), the block's output has .*\[5, 3\]",
    ),
    "dtype of output_grad": (
        {"kind": "full", "output_grad": torch.ones(5, 3).double()},
        ValueError,
        "output_grad has dtype torch.float64, the block's output has torch.float32",
    ),
    "nan in output_grad": (
        {"kind": "full", "output_grad": torch.full((5, 3), torch.nan)},
        ValueError,
        "output_grad has NaN",
    ),
    "form that is not there": ({"form": "gram"}, ValueError, "form='gram' is for"),
    "approximate by autograd": (
        {"module": NORM, "approximate": True, "form": "autograd"},
        ValueError,
        "approximate=True has no form 'autograd'",
    ),
    "approximate without a norm": (
        {"approximate": True},
        ValueError,
        "approximate=True",
    ),
    "eval-mode norm": (
        {"module": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval(), "approximate": True},
        ValueError,
        r"train-mode batch norm.*eval mode.*module.train\(\)",
    ),
    "half precision form": (
        {
            "module": nn.Linear(4, 3).bfloat16(),
            "inputs": torch.ones(5, 4).bfloat16(),
            "form": "factored",
        },
        ValueError,
        "closed forms need .* got torch.bfloat16: convert them",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments(case):
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message):
        operator(**changes)


VECTORS = {
    "numpy": (np.ones(12), TypeError, "needs a torch tensor, got ndarray: .*to_scipy"),
    "list": ([1.0] * 12, TypeError, "needs a torch tensor, got list"),
    "length": (torch.ones(11), ValueError, r"shape \(12,\) or \(12, K\), got \(11,\)"),
    "rows": (torch.ones(3, 12), ValueError, r"shape \(12,\) or \(12, K\), got \(3, 12\)"),
    "scalar": (torch.ones(()), ValueError, r"got \(\)"),
    "three dimensions": (torch.ones(12, 2, 2), ValueError, r"got \(12, 2, 2\)"),
    "dtype": (torch.ones(12).double(), TypeError, r"float64, H has torch.float32: use V.to\(torch"),
    "integers": (torch.ones(12, dtype=torch.int64), TypeError, "torch.int64, H has torch.float32"),
    "device": (torch.ones(12, device=META), ValueError, r"V is on meta, H on cpu: use V.to\('cpu'"),
    "nan": (torch.full((12, 2), torch.nan), ValueError, "V has NaN or infinite values"),
    "inf": (torch.full((12,), torch.inf), ValueError, "V has NaN or infinite values"),
}


@pytest.mark.parametrize("case", VECTORS)
@pytest.mark.parametrize("form", ["auto", "autograd"])
def test_vectors(case, form):
    V, error, message = VECTORS[case]
    with pytest.raises(error, match=message):
        operator(module=nn.Linear(4, 3), form=form) @ V


def test_numpy_on_the_left():
    with pytest.raises(TypeError):
        np.ones(12) @ operator()


def test_snapshot_checks_what_replaces_its_tensors():
    frozen = Snapshot(nn.Linear(4, 3), torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"no parameter 'weigth'; it has 'weight', 'bias'"):
        frozen({"weigth": torch.ones(3, 4)})
    with pytest.raises(TypeError, match="inputs must be a tensor or a tuple"):
        frozen(inputs=3.0)


def test_norms_of_one_sample():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        operator(module=NORM, inputs=torch.ones(1, 4))
