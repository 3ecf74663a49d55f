"""Small networks as lists of blocks, for tests of back-matching."""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.phi = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.phi(x)


def mlp():
    blocks = [
        nn.Linear(7, 5),
        nn.Sequential(nn.Tanh(), nn.Linear(5, 6, bias=False)),
        nn.Linear(6, 3),
    ]
    return blocks, torch.randn(9, 7)


def conv():
    blocks = [
        nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GELU()),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.Sequential(nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten()),
        nn.Linear(6 * 2 * 2, 3),
    ]
    return blocks, torch.randn(4, 2, 13, 12)


def conv_batch_norm():
    blocks = [
        nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(5, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 5, 3)),
    ]
    return blocks, torch.randn(6, 3, 8, 9)


def residual():
    def block():
        return Residual(
            nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        )

    return [block(), block(), nn.Sequential(nn.Flatten(), nn.Linear(75, 3))], torch.randn(
        5, 3, 5, 5
    )


def layer_norm():
    blocks = [
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)),
        Residual(nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 8)),
        nn.Linear(8, 3),
    ]
    return blocks, torch.randn(11, 6)


def dropout():
    blocks = [
        nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.4)),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10)),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(10, 3)),
    ]
    return blocks, torch.randn(12, 8)


def embedding():
    blocks = [nn.Embedding(17, 6), nn.Sequential(nn.Flatten(), nn.Tanh()), nn.Linear(24, 3)]
    return blocks, torch.randint(17, (10, 4))


def tied_in_a_block():
    inner = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    inner[2].weight = inner[0].weight
    return [inner, nn.Linear(5, 3)], torch.randn(8, 5)


NETWORKS = [mlp, conv, conv_batch_norm, residual, layer_norm, dropout, embedding, tied_in_a_block]


def build(network, dtype=torch.float64):
    blocks, x = network()
    x = x.to(dtype) if x.is_floating_point() else x
    return nn.Sequential(*(block.to(dtype) for block in blocks)), x, torch.randint(3, (len(x),))
