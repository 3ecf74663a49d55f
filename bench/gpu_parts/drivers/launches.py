"""Kernels, copies and device time per step, from a profiler's trace of a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

import lhkernels as lh
from bench.shapes import MODELS
from gpu_parts.drivers.common import OPTIMIZERS, OPTIONS, OURS, Job, parameters

NAMES = {
    **OPTIMIZERS,
    f"{OURS}, amend=False": lambda ps: lh.ScaleAmendedSGD(ps, fused=True, amend=False, **OPTIONS),
    f"{OURS}, capturable": lambda ps: lh.ScaleAmendedSGD(
        ps, fused=True, capturable=True, **OPTIONS
    ),
    "torch loop": lambda ps: torch.optim.SGD(ps, foreach=False, **OPTIONS),
}
COPIES = ("Memcpy", "Memset")
LARGE = ("transformer-1b",)


def is_mark(event: Any) -> bool:
    """The span that the profiler lays around an optimizer's step, on the device's timeline too."""
    named = event.name.startswith("Optimizer.")
    return named or getattr(event, "is_user_annotation", False)


def trace(job: Job, opt: torch.optim.Optimizer) -> dict[str, Any]:
    """One step's kernels by name, its copies, and what the device worked, in milliseconds."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = job.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as trace:
        opt.step()
        job.wait()
    wanted = "CUDA" if on_gpu else "CPU"
    events = [
        e for e in trace.events() if e.device_type.name == wanted and not (on_gpu and is_mark(e))
    ]
    copies = [e for e in events if e.name.startswith(COPIES)]
    kernels = [e for e in events if not e.name.startswith(COPIES)]
    names = Counter(e.name[:60] for e in kernels)
    return {
        "kernels": len(kernels),
        "copies": len(copies),
        "device_ms": sum(e.time_range.elapsed_us() for e in kernels) / 1e3,
        "names": dict(names.most_common(4)),
    }


def main() -> None:
    job = Job(__doc__)
    models = ["vgg13"] if job.dry else ["vgg13", "resnet50", "gpt2-small", *LARGE]
    rows: list[dict[str, Any]] = []
    for model in models:
        shapes = [(8, 4), (5,), (3, 2, 3, 3)] if job.dry else MODELS[model]()
        dtype = torch.bfloat16 if model in LARGE else torch.float32
        for name, make in NAMES.items():
            if model in LARGE and name not in OPTIMIZERS:
                continue
            opt = make(params := parameters(shapes, job.device, dtype))
            for _ in range(3):
                opt.step()
            steady = trace(job, opt)
            for p in params:  # as after zero_grad: gradients at other addresses
                p.grad = p.grad.clone()
            fresh = trace(job, opt)
            rows.append(
                {"model": model, "optimizer": name, "tensors": len(shapes), **steady}
                | {"copies_new_gradients": fresh["copies"]}
            )
            del opt, params
            job.save(launches=rows)


if __name__ == "__main__":
    main()
