"""A few steps of one large tensor, for ncu: only the last ones lie in the profiled range."""

from __future__ import annotations

import torch

import lhkernels as lh
from gpu_parts.drivers.common import OPTIONS, Job, parameters
from gpu_parts.predictions import BYTES


def optimizer(case: str, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a case of ``predictions.BYTES``."""
    options = dict(OPTIONS)
    if case.startswith("torch fused"):
        return torch.optim.SGD(params, fused=True, **options)
    if case.startswith("torch foreach"):
        return torch.optim.SGD(params, foreach=True, **options)
    if "no momentum" in case:
        options["momentum"] = 0.0
    if "float32 momentum" in case:
        options["momentum_dtype"] = torch.float32
    return lh.ScaleAmendedSGD(params, fused=True, **options)


def main() -> None:
    job = Job(
        __doc__,
        ("--case", {"choices": list(BYTES), "default": next(iter(BYTES))}),
        ("--elements", {"type": int, "default": 2**29}),
        ("--steps", {"type": int, "default": 2}),
    )
    case, steps = job.args.case, job.args.steps
    dtype = torch.bfloat16 if "bfloat16" in case else torch.float32
    rows = (1 << 12 if job.dry else job.args.elements) // 1024
    params = parameters([(rows, 1024)], job.device, dtype)
    opt = optimizer(case, params)
    for _ in range(3):  # buffers, tables, compiled kernels and norms exist from here on
        opt.step()
    job.wait()
    cuda = job.device.type == "cuda"
    if cuda:
        torch.cuda.profiler.start()
    for _ in range(steps):
        opt.step()
    job.wait()
    if cuda:
        torch.cuda.profiler.stop()
    assert all(p.isfinite().all() for p in params)
    job.save(case=case, elements=params[0].numel(), steps=steps)


if __name__ == "__main__":
    main()
