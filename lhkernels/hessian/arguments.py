"""Arguments, checked and converted; errors name the argument, its value, and what to pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def whole(name: str, value: Any, least: int, remedy: str) -> int:
    """``value`` as an int, which must be a whole number >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} is not a whole number >= {least}; {remedy}")
    return int(value)


def positive(name: str, value: Any, remedy: str, wrong_type: type[Exception] = ValueError) -> float:
    """``value`` as a float, which must be a finite number > 0."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong_type(f"{name}={value!r} is not a number; {remedy}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name}={value!r} is not a finite number > 0; {remedy}")
    return float(value)


def shares(name: str, q: Tensor) -> Tensor:
    """``q``, which must be in [0, 1]."""
    outside = ~((q >= 0.0) & (q <= 1.0))
    if outside.any():
        raise ValueError(f"{name}={q[outside].flatten()[0].item()!r} is outside [0, 1]")
    return q


def elementwise(name: str, x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``function`` of a float64 tensor, for a tensor, array, list, tuple or number."""
    if isinstance(x, Tensor):
        if x.is_complex():
            raise TypeError(f"{name} is complex ({x.dtype}); pass real numbers")
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return function(x.detach().double()).to(dtype)
    if isinstance(x, Real):
        return function(torch.tensor(float(x), dtype=torch.float64)).item()
    if isinstance(x, list | tuple):
        values = function(torch.tensor(x, dtype=torch.float64)).tolist()
        return values if isinstance(x, list) else tuple(values)
    if hasattr(x, "__array__"):
        array = x.__array__()
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} is an array of {array.dtype}; pass real numbers")
        result = function(torch.tensor(array.astype("float64"))).numpy()
        return result.astype(array.dtype) if array.dtype.kind == "f" else result
    raise TypeError(f"{name} is a {type(x).__name__}; pass a tensor, an array, a list or a number")
