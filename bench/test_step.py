"""opt.step() under pytest-benchmark.

Each contender is timed alone here; ``python -m lhkernels bench step`` times them in alternation,
and is where ratios are to be taken from.
"""

import pytest
import torch

from bench.shapes import MODELS
from bench.step import contenders, prepare, timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("model", ["vgg13", "resnet50", "vit-b16", "gpt2-small"])
@pytest.mark.parametrize("contender", contenders(DEVICE))
def test_step(benchmark, model, contender):
    opt = prepare(contenders(DEVICE)[contender], MODELS[model](), DEVICE, torch.float32)
    benchmark.group = f"step {model}"
    benchmark.extra_info.update(case=model, contender=contender)
    benchmark.pedantic(timed, args=(opt, DEVICE), rounds=10, warmup_rounds=2)
