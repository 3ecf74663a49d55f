"""Small steps of every kind, for compute-sanitizer, each compared with the reference in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lhkernels as lh
from gpu_parts.drivers.common import Job, largest_difference

SHAPES = [(130, 257), (1, 16385), (64, 3, 3, 3), (7,), (), (1023, 1), (33, 1024)]
STEPS = 3
KINDS = {
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "plain": {},
    "nesterov, maximize": {"momentum": 0.9, "nesterov": True, "maximize": True},
    "amend=False": {"momentum": 0.9, "amend": False},
    "capturable": {"momentum": 0.9, "capturable": True},
    # The larger lr moves every tensor by more than a few units in the last place.
    "bfloat16": {"momentum": 0.9, "lr": 0.1, "dtype": torch.bfloat16},
    "bfloat16, stochastic rounding": {
        "momentum": 0.9, "lr": 0.1, "dtype": torch.bfloat16, "stochastic_rounding": True,
    },
    "float16, float32 momentum": {
        "momentum": 0.9, "lr": 0.1, "dtype": torch.float16, "momentum_dtype": torch.float32,
    },
}  # fmt: skip
OWN = ("capturable", "momentum_dtype", "stochastic_rounding")  # not of the reference's step


def tensors(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Aligned and, every third one, not aligned to 16 bytes."""
    made = []
    for i, shape in enumerate(SHAPES):
        values = torch.randn(shape).to(dtype) * 0.1 + 0.01
        if i % 3 == 2:
            storage = torch.zeros(values.numel() + 1, dtype=dtype)
            storage[1:] = values.reshape(-1)
            made.append(storage.to(device)[1:].view(shape))
        else:
            made.append(values.to(device))
    return made


def difference(device: torch.device, kind: str) -> float:
    """Between fused steps and the reference's in float64, from the same values."""
    options = {"lr": 0.01, **KINDS[kind]}
    dtype = options.pop("dtype", torch.float32)
    params = [nn.Parameter(t) for t in tensors(device, dtype)]
    exact = [nn.Parameter(p.detach().cpu().double()) for p in params]
    common = {k: v for k, v in options.items() if k not in OWN}
    opt = lh.ScaleAmendedSGD(params, fused=True, **options)
    reference = lh.ScaleAmendedSGD(exact, foreach=False, **common)
    for _ in range(STEPS):
        for p, e, g in zip(params, exact, tensors(device, dtype)):
            p.grad, e.grad = g, g.detach().cpu().double()
        opt.step()
        reference.step()
    return largest_difference([p.detach().cpu() for p in params], list(exact))


def overflow_moves_nothing(device: torch.device) -> bool:
    """A step under AMP whose gradients overflowed."""
    params = [nn.Parameter(t) for t in tensors(device, torch.float32)]
    opt = lh.ScaleAmendedSGD(params, momentum=0.9, fused=True)
    for p, g in zip(params, tensors(device, torch.float32)):
        p.grad = g
    opt.step()
    before = [p.detach().clone() for p in params]
    opt.grad_scale = torch.ones((), device=device)  # type: ignore[attr-defined]
    opt.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
    opt.step()
    return all(torch.equal(p, b) for p, b in zip(params, before))


def main() -> None:
    job = Job(__doc__)
    worst: dict[str, float] = {}
    for kind, options in KINDS.items():
        worst[kind] = difference(job.device, kind)
        eps = torch.finfo(options.get("dtype", torch.float32)).eps
        job.save(difference=worst)
        if not worst[kind] <= STEPS * eps:
            raise SystemExit(f"{kind}: {worst[kind]:.3g} from the reference, more than rounding")
    if not overflow_moves_nothing(job.device):
        raise SystemExit("an overflow step moved a weight")
    job.save(overflow="moves nothing")


if __name__ == "__main__":
    main()
