"""The blocks on which Hessian-vector products are timed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS: dict[str, Any] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d}
NORMS: dict[str, Any] = {
    "linear": nn.BatchNorm1d,
    "conv1d": nn.BatchNorm1d,
    "conv2d": nn.BatchNorm2d,
}


@dataclass(frozen=True)
class Case:
    """One block, its input's size, and how many vectors are multiplied at once.

    ``size`` is the side of the image (or the length) of a convolution's input, 0 for a linear
    layer; convolutions keep it (3 taps, padding 1).
    """

    kind: str
    n_in: int
    n_out: int
    batch: int
    size: int
    columns: int
    batch_norm: bool = True
    wrt: str = "weight"

    @property
    def title(self) -> str:
        """Such as ``conv2d 64->64 + BN at 16x16, N 64, K 16``."""
        norm = " + BN" if self.batch_norm else ""
        at = {"linear": "", "conv1d": f" at {self.size}", "conv2d": f" at {self.size}x{self.size}"}
        wrt = "" if self.wrt == "weight" else ", wrt input"
        return (
            f"{self.kind} {self.n_in}->{self.n_out}{norm}{at[self.kind]}, "
            f"N {self.batch}, K {self.columns}{wrt}"
        )

    @property
    def tiny(self) -> Case:
        """The same operations on next to no data: what loads code, and allocates little."""
        return replace(self, n_in=4, n_out=4, batch=4, size=min(self.size, 4), columns=2)

    def build(self, device: torch.device, seed: int = 0) -> tuple[nn.Module, Tensor]:
        """The block in train mode and its input, both float32 and the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        if self.kind == "linear":
            layer: nn.Module = nn.Linear(self.n_in, self.n_out, bias=False)
            shape: tuple[int, ...] = (self.batch, self.n_in)
        else:
            layer = CONVOLUTIONS[self.kind](self.n_in, self.n_out, 3, padding=1, bias=False)
            shape = (self.batch, self.n_in, *(int(self.kind[4]) * (self.size,)))
        with torch.no_grad():
            weight = next(layer.parameters())
            weight.normal_(std=(self.n_in * weight[0, 0].numel()) ** -0.5, generator=generator)
        norm = [NORMS[self.kind](self.n_out)] if self.batch_norm else []
        inputs = torch.randn(shape, generator=generator)
        return nn.Sequential(layer, *norm).train().to(device), inputs.to(device)

    def vectors(self, dim: int, device: torch.device, seed: int = 1) -> Tensor:
        """(dim, K) standard normal, column-major: what suits every contender best."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.columns, dim, generator=generator).to(device).T


CASES = {
    "conv64": Case("conv2d", 64, 64, 64, 16, 16),
    "conv256": Case("conv2d", 256, 256, 64, 8, 16),
    "conv512": Case("conv2d", 512, 512, 128, 4, 8),
    "linear1024": Case("linear", 1024, 1024, 4096, 0, 32, batch_norm=False),
    "conv1d": Case("conv1d", 128, 128, 64, 64, 16),
    "conv64-input": Case("conv2d", 64, 64, 64, 16, 8, wrt="input"),
    "linear512-input": Case("linear", 512, 512, 2048, 0, 8, wrt="input"),
}
