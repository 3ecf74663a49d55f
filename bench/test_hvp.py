"""A fresh operator and one product with K vectors under pytest-benchmark.

The larger blocks, peak memory and speed-ups in alternation: ``python -m lhkernels bench hvp``.
"""

import pytest
import torch

from bench import hvp, peers
from bench.blocks import CASES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("case", ["conv64", "conv1d"])
@pytest.mark.parametrize("contender", peers.contenders())
def test_hvp(benchmark, case, contender):
    with hvp.full_precision():
        problem = peers.problem(CASES[case], DEVICE)
        columns = CASES[case].vectors(problem.point.numel(), DEVICE)
        make = peers.contenders()[contender]
        error = hvp.distance(make(problem)(columns), hvp.float64_product(CASES[case], columns))
        assert error < 1e-4

        def product():
            result = make(problem)(columns)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            return result

        benchmark.group = f"hvp {case}"
        info = {"case": CASES[case].title, "contender": contender, "error": error}
        benchmark.extra_info.update(info)
        benchmark.pedantic(product, rounds=5, warmup_rounds=1)
