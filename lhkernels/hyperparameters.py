"""The options of one step, validated once and handed over whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# Options of a group that torch.optim.SGD does not have, and their values in its checkpoints.
OWN_OPTIONS: dict[str, Any] = {
    "amend": True,
    "scale_reference": "output",
    "capturable": False,
    "momentum_dtype": None,
    "stochastic_rounding": False,
    "output_units": None,
    "scale_constant": None,
    "rounding_step": None,
}

SCALE_REFERENCES = ("output", "initial")
BUFFER_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLAGS = ("nesterov", "maximize", "differentiable", "amend", "capturable", "stochastic_rounding")
TORCH_CHOOSES = ("foreach", "fused")  # flags that may be None
REMEDIES = {
    "lr": "pass a finite lr >= 0, such as lr=0.1",
    "momentum": "pass 0 for none, or such as 0.9",
    "dampening": "pass 0 for none",
    "weight_decay": "pass 0 for none, or such as 5e-4",
}


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What a step of one parameter group needs beside its tensors.

    They have the meaning that they have in :class:`torch.optim.SGD`. Each may be a 1-element
    tensor: ``lr`` and ``weight_decay`` stay one, of 0 dimensions, on a device and where they need a
    gradient; the host reads the others. Only what no step can use is refused: schedules may end
    slightly below 0 (:func:`check_group` is for what a user writes).

    Raises:
        ValueError: naming the option and its value, which is not one finite number.

    Example:
        >>> Hyperparameters(lr=float("nan"))
        Traceback (most recent call last):
        ValueError: lr=nan is not a finite number; pass a finite lr >= 0, such as lr=0.1
    """

    lr: float | Tensor = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float | Tensor = 0.0
    nesterov: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay"):
            _number(name, getattr(self, name))
            object.__setattr__(self, name, _scalar(getattr(self, name)))
        for name in ("momentum", "dampening"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                if value.requires_grad:
                    raise ValueError(
                        f"{name} is a tensor that requires grad, but no step is differentiable "
                        f"with respect to it; pass {name}.detach()"
                    )
                object.__setattr__(self, name, value.item() if value.numel() == 1 else value)
            _number(name, getattr(self, name))

    @classmethod
    def of_group(cls, group: Mapping[str, Any]) -> Hyperparameters:
        """The hyperparameters of a parameter group (other keys of the group are ignored)."""
        return cls(**{name: group[name] for name in NAMES})

    def numbers(self) -> dict[str, Any]:
        """All of them by name, as floats and bools; the host reads those that are tensors."""
        return {name: _as_number(getattr(self, name)) for name in NAMES}


NAMES = tuple(field.name for field in fields(Hyperparameters))


def _as_number(value: Any) -> float | bool:
    if isinstance(value, Tensor):
        return value.item()
    return value if isinstance(value, bool) else float(value)


def _scalar(value: float | Tensor) -> float | Tensor:
    """A float where reading it is free; a 0-dim tensor if it is on a device or needs a gradient."""
    if not isinstance(value, Tensor):
        return value
    if value.device.type == "cpu" and not value.requires_grad:
        return value.item()
    return value.reshape(())


def _number(name: str, value: object) -> object:
    """The finite number that it is; None for a tensor on a device, which would stall the host."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"Tensor {name} must be 1-element, but has shape {tuple(value.shape)}; "
                f"{REMEDIES[name]}"
            )
        if value.device.type != "cpu":
            return None
        value = value.item()
    if not (isinstance(value, Real) and math.isfinite(value)):
        raise ValueError(f"{name}={value!r} is not a finite number; {REMEDIES[name]}")
    return value


def check_group(group: Mapping[str, Any]) -> None:
    """Raise for options of a group that a user should not write.

    Raises:
        ValueError: :class:`Hyperparameters` or :func:`check_flags` refuse a value; lr, momentum or
            weight decay are negative; nesterov is without momentum or with dampening.
        RuntimeError: see :func:`check_flags`.
    """
    h = Hyperparameters.of_group(group)
    check_flags(group)
    for name in ("lr", "momentum", "weight_decay"):
        value: Any = _number(name, getattr(h, name))
        if value is not None and value < 0:
            raise ValueError(f"Invalid {name} value: {value!r} is negative; {REMEDIES[name]}")
    if h.nesterov and (h.momentum == 0 or h.dampening != 0):
        raise ValueError(
            f"nesterov={h.nesterov!r} needs momentum > 0 and dampening = 0, but got "
            f"momentum={h.momentum!r} and dampening={h.dampening!r}; set both, or pass "
            "nesterov=False"
        )


def complete_group(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group with what it lacks, such as torch.optim.SGD's, from the optimizer's own.

    Names stay as they are. Raises as :class:`Hyperparameters` and :func:`check_flags` do.
    """
    names = {"param_names": own["param_names"]} if "param_names" in own else {}
    group = {**own, **saved, **names}
    Hyperparameters.of_group(group)
    check_flags(group)
    return group


def check_flags(group: Mapping[str, Any]) -> None:
    """Raise for options of a group that exclude each other or have no such value.

    Raises:
        ValueError: a flag that is not a bool, an unknown ``scale_reference`` or ``momentum_dtype``.
        RuntimeError: ``fused``, ``foreach`` and ``differentiable`` in a combination that torch's
            optimizers refuse as well.
    """
    for name in FLAGS:
        if not isinstance(group[name], bool):
            raise ValueError(f"{name}={group[name]!r} is not a bool; pass True or False")
    for name in TORCH_CHOOSES:
        if not (group[name] is None or isinstance(group[name], bool)):
            raise ValueError(f"{name}={group[name]!r} is not a bool; pass True, False or None")
    if group["scale_reference"] not in SCALE_REFERENCES:
        raise ValueError(
            f"scale_reference={group['scale_reference']!r} is unknown; pass one of "
            f"{', '.join(map(repr, SCALE_REFERENCES))}"
        )
    if group["momentum_dtype"] not in (None, *BUFFER_DTYPES):
        raise ValueError(
            f"momentum_dtype={group['momentum_dtype']!r} is no dtype that buffers can have; pass "
            f"one of {', '.join(map(str, BUFFER_DTYPES))}, or None for the parameter's own"
        )
    if group["fused"] and group["foreach"]:
        raise RuntimeError("fused=True and foreach=True exclude each other; pass one of them")
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("fused=True has no differentiable step; pass fused=False or None")
