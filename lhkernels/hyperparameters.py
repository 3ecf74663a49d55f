"""The options of one step, validated once and handed over whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

SCALE_REFERENCES = ("output", "initial")


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What a step of one parameter group needs beside its tensors.

    ``lr`` and ``weight_decay`` are floats or 1-element tensors; the others are floats and flags
    with the meaning they have in :class:`torch.optim.SGD`.

    Raises:
        ValueError: naming the option, its value and the range it must lie in.

    Example:
        >>> Hyperparameters(lr=-1.0)
        Traceback (most recent call last):
        ValueError: lr=-1.0 is not a finite number >= 0; pass a finite lr >= 0, such as lr=0.1
    """

    lr: float | Tensor = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float | Tensor = 0.0
    nesterov: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        _check_rate("lr", self.lr, remedy="pass a finite lr >= 0, such as lr=0.1")
        _check_rate("weight_decay", self.weight_decay, remedy="pass 0 for none, or such as 5e-4")
        if not (isinstance(self.momentum, Real) and 0.0 <= self.momentum < 1.0):
            raise ValueError(
                f"Invalid momentum value: {self.momentum!r} is outside [0, 1); pass momentum=0 for "
                "none, or such as 0.9"
            )
        if not (isinstance(self.dampening, Real) and math.isfinite(self.dampening)):
            raise ValueError(f"dampening={self.dampening!r} is not finite; pass 0 for none")
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError(
                f"nesterov={self.nesterov!r} needs momentum > 0 and dampening = 0, but got "
                f"momentum={self.momentum!r} and dampening={self.dampening!r}; set both, or pass "
                "nesterov=False"
            )

    @classmethod
    def of_group(cls, group: Mapping[str, Any]) -> Hyperparameters:
        """The hyperparameters of a parameter group (other keys of the group are ignored)."""
        return cls(
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )


def as_scalar(value: float | Tensor) -> float | Tensor:
    """A float where reading it is free; a 0-dim tensor if it is on a device or needs a gradient."""
    if not isinstance(value, Tensor):
        return value
    if value.device.type == "cpu" and not value.requires_grad:
        return value.item()
    return value.reshape(())


def _check_rate(name: str, value: float | Tensor, remedy: str) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"Tensor {name} must be 1-element, but has shape {tuple(value.shape)}; {remedy}"
            )
        if value.device.type != "cpu":
            return  # its value is the device's business: reading it would stall the host
        value = value.item()
    if not (isinstance(value, Real) and math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name}={value!r} is not a finite number >= 0; {remedy}")


def check_flags(group: Mapping[str, Any]) -> None:
    """Raise for options of a group that exclude each other or have no such value.

    Raises:
        ValueError: an unknown ``scale_reference`` or ``momentum_dtype``.
        RuntimeError: ``fused``, ``foreach`` and ``differentiable`` in a combination that torch's
            optimizers refuse as well.
    """
    if group["scale_reference"] not in SCALE_REFERENCES:
        raise ValueError(
            f"scale_reference={group['scale_reference']!r} is unknown; pass one of "
            f"{', '.join(map(repr, SCALE_REFERENCES))}"
        )
    dtype = group["momentum_dtype"]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"momentum_dtype={dtype!r} is not a floating point dtype; pass such as torch.float32, "
            "or None for the parameter's own"
        )
    if group["fused"] and group["foreach"]:
        raise RuntimeError("fused=True and foreach=True exclude each other; pass one of them")
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("fused=True has no differentiable step; pass fused=False or None")
