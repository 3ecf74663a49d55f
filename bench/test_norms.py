"""Squared norms of all parameters under pytest-benchmark; ``error`` is the largest relative one."""

import pytest
import torch

from bench.shapes import MODELS
from bench.step import random_tensors
from lhkernels import _extension
from lhkernels.step import cpp as ops

CPU = torch.device("cpu")  # on a GPU the step's kernel makes them itself

CONTENDERS = {
    "lhkernels": ops.sq_norms,
    "torch._foreach_norm": lambda ws: torch.stack(torch._foreach_norm(ws)).square(),
    "torch.linalg.vector_norm": lambda ws: torch.stack(
        [torch.linalg.vector_norm(w) for w in ws]
    ).square(),
    "torch.dot": lambda ws: torch.stack([torch.dot(w.view(-1), w.view(-1)) for w in ws]),
    "square().sum()": lambda ws: torch.stack([w.square().sum() for w in ws]),
}


@pytest.mark.parametrize("model", ["vgg13", "resnet50", "vit-b16", "gpt2-small"])
@pytest.mark.parametrize("contender", CONTENDERS)
def test_norms(benchmark, model, contender):
    if contender == "lhkernels" and _extension.reason() is not None:
        pytest.skip(_extension.reason())
    shapes = MODELS[model]()
    weights = random_tensors(shapes, CPU, torch.float32, std=0.02)
    true = torch.stack([w.double().square().sum() for w in weights])
    found = CONTENDERS[contender](weights).double()
    error = float(((found - true) / true).abs().max())
    benchmark.group = f"norms {model}"
    benchmark.extra_info.update(case=model, contender=contender, error=error)
    benchmark.pedantic(CONTENDERS[contender], args=(weights,), rounds=20, warmup_rounds=2)
