"""The optimizer's share of a training step: VGG13, and a stack of GPT-2 small's size.

Forward, loss and backward against ``opt.step()``, each from an idle device to an idle device, and
whole iterations without a wait in between. Every optimizer has a model of its own, from the same
initialisation; they take turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_parts.drivers.common import OPTIMIZERS, OURS, Job


class Block(nn.Module):
    """Attention and MLP, each after a normalisation and with a residual."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(n, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """A causal language model with tied embeddings; GPT-2 small's sizes by default."""

    def __init__(
        self, vocabulary: int = 50257, context: int = 1024, d: int = 768, heads: int = 12,
        layers: int = 12,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, d), nn.Embedding(context, d)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(d, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(d)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def vgg13(job: Job) -> tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]:
    """The paper's VGG13 on 32x32 images, batch 128, float32 (TF32 in convolutions: the default)."""
    from lhkernels.training.models import VGG

    n, layout, side = (2, "vgg-small", 8) if job.dry else (128, "vgg13", 32)
    images = torch.randn(n, 3, side, side, device=job.device)
    labels = torch.randint(10, (n,), device=job.device)

    def loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(images), labels)

    return lambda: VGG(layout, 3, 10), loss


def gpt2(job: Job) -> tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]:
    """8 sequences of 1024 tokens; float32 parameters, bfloat16 autocast."""
    sizes: dict[str, int] = (
        {"vocabulary": 50, "context": 16, "d": 16, "heads": 2, "layers": 2} if job.dry else {}
    )
    n, t, vocabulary = (2, 16, 50) if job.dry else (8, 1024, 50257)
    tokens = torch.randint(vocabulary, (n, t + 1), device=job.device)

    def loss(model: nn.Module) -> Tensor:
        with torch.autocast(job.device.type, torch.bfloat16):
            logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    return lambda: Transformer(**sizes), loss


class Run:
    """A model, its optimizer, and the times of its phases in milliseconds."""

    def __init__(self, make: Callable[[], nn.Module], name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = make().to(device)
        self.opt = OPTIMIZERS[name](list(self.model.parameters()))
        if name == OURS:  # torch's learning rate is of the right order then
            for group in self.opt.param_groups:
                group["scale_reference"] = "initial"
        self.phases: dict[str, list[float]] = {"fwd_bwd_ms": [], "step_ms": [], "iteration_ms": []}

    def backward(self, loss: Callable[[nn.Module], Tensor]) -> None:
        self.opt.zero_grad()
        loss(self.model).backward()

    def measure(self, job: Job, loss: Callable[[nn.Module], Tensor], iterations: int) -> None:
        self.phases["fwd_bwd_ms"].append(job.ms(lambda: self.backward(loss)))
        self.phases["step_ms"].append(job.ms(self.opt.step))

        def train() -> None:
            for _ in range(iterations):
                self.backward(loss)
                self.opt.step()

        self.phases["iteration_ms"].append(job.ms(train) / iterations)


def main() -> None:
    job = Job(__doc__)
    rounds, iterations, warm_up = (2, 1, 1) if job.dry else (20, 5, 5)
    rows: list[dict[str, Any]] = []
    for title, build in {"vgg13, batch 128": vgg13, "gpt2-small, 8 x 1024": gpt2}.items():
        make, loss = build(job)
        runs = {name: Run(make, name, job.device) for name in OPTIMIZERS}
        for run in runs.values():
            for _ in range(warm_up):
                run.backward(loss)
                run.opt.step()
        for _ in range(rounds):
            for run in runs.values():
                run.measure(job, loss, iterations)
        for name, run in runs.items():
            medians = {key: statistics.median(ts) for key, ts in run.phases.items()}
            share = medians["step_ms"] / (medians["fwd_bwd_ms"] + medians["step_ms"])
            if not all(p.isfinite().all() for p in run.model.parameters()):
                raise SystemExit(f"{title}, {name}: the weights are no longer finite")
            elements = sum(p.numel() for p in run.model.parameters())
            rows.append(
                {"model": title, "elements": elements, "optimizer": name, **medians}
                | {"share": share, "rounds": rounds}
            )
        job.save(share=rows)
        del runs


if __name__ == "__main__":
    main()
