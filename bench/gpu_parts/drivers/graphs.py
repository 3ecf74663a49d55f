"""A training step captured in a CUDA graph: replays against the same steps taken eagerly.

Forward, backward and a ``capturable=True`` step are captured once. Every replay sees another batch
and another learning rate, which lies on the device. The twin takes its steps eagerly, with
``capturable=False`` and the learning rate as a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lhkernels as lh
from gpu_parts.drivers.common import Job, largest_difference

OPTIONS = {"momentum": 0.9, "weight_decay": 1e-4, "scale_reference": "initial", "fused": True}
WARM_UP, REPLAYS = 3, 20
TOLERANCE = 1e-4  # relative; the matrix products of a capture may be other ones than outside it


def network(width: int) -> nn.Module:
    """Linear layers with layer norms: no randomness, and no running statistics."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def training_step(
    model: nn.Module, opt: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Callable[[], None]:
    def step() -> None:
        opt.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        opt.step()

    return step


def capture(job: Job, step: Callable[[], None]) -> Callable[[], None]:
    """The step as a graph, after warming up on another stream; on a CPU, the step itself."""
    if job.device.type == "cpu":
        for _ in range(WARM_UP):
            step()
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def main() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    job = Job(__doc__)
    replays = 4 if job.dry else REPLAYS
    torch.use_deterministic_algorithms(True, warn_only=True)
    width, batch = (16, 4) if job.dry else (1024, 256)
    x = torch.empty(batch, width, device=job.device)
    y = torch.empty(batch, dtype=torch.int64, device=job.device)
    batches = [
        (torch.randn_like(x), torch.randint(10, (batch,), device=job.device))
        for _ in range(replays)
    ]
    x.copy_(batches[0][0])
    y.copy_(batches[0][1])
    lr = torch.tensor(0.05, device=job.device)
    model, twin = (network(width).to(job.device) for _ in range(2))
    opt = lh.ScaleAmendedSGD(model.parameters(), lr=lr, capturable=True, **OPTIONS)
    eager = lh.ScaleAmendedSGD(twin.parameters(), lr=0.05, **OPTIONS)
    replay = capture(job, training_step(model, opt, x, y))
    step = training_step(twin, eager, x, y)
    for _ in range(WARM_UP):
        step()
    result: dict[str, Any] = {"captured": job.device.type == "cuda", "replays": replays}
    for i, (images, labels) in enumerate(batches):
        x.copy_(images)
        y.copy_(labels)
        rate = 0.05 * 0.9**i
        lr.fill_(rate)
        eager.param_groups[0]["lr"] = lr.item()  # the same float32
        replay()
        step()
    job.wait()
    difference = largest_difference(list(model.parameters()), list(twin.parameters()))
    same = all(map(torch.equal, model.parameters(), twin.parameters()))
    rounds = 3 if job.dry else 50
    result |= {"largest_difference": difference, "same_bits": same}
    result |= {"replay_ms": job.median_ms(replay, rounds), "eager_ms": job.median_ms(step, rounds)}
    job.save(graph=result)
    if not difference <= TOLERANCE:
        raise SystemExit(f"replays are {difference:.3g} from eager steps, relative to the weights")


if __name__ == "__main__":
    main()
