"""The optimizers that are compared, all with the same momentum and weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lhkernels as lh
from lhkernels.training.config import TrainConfig


def build_optimizer(name: str, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """``sgd``, ``sa-sgd`` or ``lars`` with the learning rate that ``config`` has for it."""
    options: dict[str, Any] = {
        "lr": config.lr[name],
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
    }
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), **options)
    if name == "sa-sgd":
        return lh.ScaleAmendedSGD(
            model.named_parameters(), scale_reference=config.scale_reference, **options
        )
    from pytorch_optimizer import LARS

    return LARS(model.parameters(), **options)
