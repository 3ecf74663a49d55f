"""``torch.compile`` of the step: does it work, is it right, and does another lr recompile it?

Each optimizer is stepped through ``torch.compile(opt.step)`` beside a twin that steps eagerly, with
another learning rate at every step: as a number in the group, and as a tensor on the device.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch

import lhkernels as lh
from bench.shapes import MODELS
from gpu_parts.drivers.common import Job, largest_difference, parameters

OPTIONS: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-4}
STEPS = 6
TOLERANCE = 1e-6  # relative: float32, another order of operations
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "lhkernels": lambda ps, lr: lh.ScaleAmendedSGD(ps, lr=lr, fused=True, **OPTIONS),
    "lhkernels foreach": lambda ps, lr: lh.ScaleAmendedSGD(ps, lr=lr, foreach=True, **OPTIONS),
    "torch foreach": lambda ps, lr: torch.optim.SGD(ps, lr=lr, foreach=True, **OPTIONS),
    "torch fused": lambda ps, lr: torch.optim.SGD(ps, lr=lr, fused=True, **OPTIONS),
}


def frames() -> int:
    """How often dynamo has compiled a frame."""
    from torch._dynamo.utils import counters

    return int(counters["frames"]["ok"])


def graph_breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def try_one(job: Job, name: str, tensor_lr: bool) -> dict[str, Any]:
    """Compile, step and compare one optimizer."""
    torch._dynamo.reset()
    # Few tensors: what inductor needs for a hundred of them, times eight, would be minutes.
    shapes = [(8, 4), (5,), (3, 2, 3, 3)] if job.dry else MODELS["vgg13"]()
    rates = [0.1 * 0.7**i for i in range(STEPS)]
    torch.manual_seed(0)
    params = parameters(shapes, job.device)
    torch.manual_seed(0)
    twins = parameters(shapes, job.device)

    def rate(value: float) -> Any:
        return torch.tensor(value, device=job.device) if tensor_lr else value

    opt, eager = MAKERS[name](params, rate(rates[0])), MAKERS[name](twins, rate(rates[0]))
    compiled = torch.compile(opt.step, backend="eager" if job.dry else "inductor")
    before, breaks = frames(), graph_breaks()
    compiled_after: list[int] = []
    for value in rates:
        for each in (opt, eager):
            group = each.param_groups[0]
            if tensor_lr:
                group["lr"].fill_(value)
            else:
                group["lr"] = value
        compiled()
        eager.step()
        compiled_after.append(frames() - before)
    job.wait()
    rounds = 3 if job.dry else 30
    return {
        "frames_compiled": compiled_after[-1],
        # The first steps make state; what is compiled after the third is for another lr.
        "recompiles": compiled_after[-1] - compiled_after[2],
        "graph_breaks": graph_breaks() - breaks,
        "difference": largest_difference(params, twins),
        "compiled_ms": job.median_ms(compiled, rounds),
        "eager_ms": job.median_ms(eager.step, rounds),
    }


def main() -> None:
    job = Job(__doc__)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for name in MAKERS:
        for tensor_lr in (False, True):
            row: dict[str, Any] = {"optimizer": name, "lr": "tensor" if tensor_lr else "float"}
            try:
                row |= {"works": True, **try_one(job, name, tensor_lr)}
            except Exception as error:  # a peer's failure is a result, too
                traceback.print_exc()
                row |= {"works": False, "error": f"{type(error).__name__}: {error}"[:200]}
            if name.startswith("lhkernels"):
                if not row["works"]:
                    wrong.append(f"{name}, {row['lr']} lr: {row['error']}")
                elif not row["difference"] <= TOLERANCE:
                    wrong.append(f"{name}, {row['lr']} lr: {row['difference']:.3g} from eager")
            rows.append(row)
            job.save(compile=rows)
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
