"""Parameters that are cut over ranks (DTensor), and the parts of them that lie here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a DTensor; without their module there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def any_dtensors(tensors: Sequence[Tensor]) -> bool:
    """Whether any is a DTensor: of many, their types are looked at, and each type once."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(
        issubclass(t, module.DTensor) for t in set(map(type, tensors))
    )


def part_here(tensor: Any) -> Tensor:
    """The part of a DTensor that this rank has, the same object every time; else the tensor."""
    if not is_dtensor(tensor):
        return tensor
    part = tensor._local_tensor  # to_local() makes a new view at every call
    return part if type(part) is Tensor else part.wait()  # of a collective that is under way


def part_like(tensor: Any, param: Any) -> Tensor:
    """The part of a gradient or buffer, cut as its parameter is (else it is sent around)."""
    if is_dtensor(param) and is_dtensor(tensor):
        ours, theirs = tensor.placements, param.placements
        if ours is not theirs and ours != theirs:
            tensor = tensor.redistribute(placements=theirs)
    return part_here(tensor)


def whole_like(part: Tensor, param: Any) -> Tensor:
    """A local part as a whole tensor, cut as ``param`` is."""
    if not is_dtensor(param):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )


@dataclass(frozen=True)
class Cut:
    """Over which dimensions of which mesh a parameter is cut; over others it is replicated."""

    mesh: DeviceMesh
    dims: tuple[int, ...]

    @classmethod
    def of(cls, param: Any) -> Cut | None:
        """None where every rank has the whole parameter.

        Raises:
            RuntimeError: the parameter is a sum over ranks that nobody has added up.
        """
        if not is_dtensor(param):
            return None
        if any(placement.is_partial() for placement in param.placements):
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} has placements {param.placements}; "
                "a Partial parameter has no norm: redistribute it to Shard or Replicate"
            )
        dims = tuple(i for i, p in enumerate(param.placements) if not p.is_replicate())
        return cls(param.device_mesh, dims) if dims else None

    @property
    def coordinates(self) -> tuple[int, ...]:
        """Which of the parts lies here: the same for replicas."""
        here = self.mesh.get_coordinate() or [0] * self.mesh.ndim
        return tuple(here[dim] for dim in self.dims)
