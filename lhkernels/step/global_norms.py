"""Norms of parameters that are cut over ranks: one all-reduce a mesh, between two steps.

The engine is torch.distributed. A backend steps the parts that lie here as it steps any tensor; all
that has to be known of the other ranks is their share of the squared norms, one number a parameter.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lhkernels.reference import sq_norm
from lhkernels.step.base import StepSet
from lhkernels.step.cuts import Cut, part_here

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class MeshSum:
    """The sum, over the ranks of one mesh, of numbers that belong to parameters cut over it.

    One all-reduce, over those dimensions of the mesh over which any of them is cut. A number whose
    parameter is replicated over one of these is counted once. With the numbers goes a flag.

    Args:
        mesh: of the parameters.
        where: a set's position among the sets, and the positions and cuts of its parameters.
        device: on which the numbers are.
    """

    def __init__(
        self, mesh: DeviceMesh, where: dict[int, list[tuple[int, Cut]]], device: torch.device
    ) -> None:
        cuts = [cut for some in where.values() for _, cut in some]
        dims = sorted({dim for cut in cuts for dim in cut.dims})
        here = mesh.get_coordinate() or [0] * mesh.ndim
        mine = [all(here[d] == 0 for d in dims if d not in cut.dims) for cut in cuts]
        self._mine = torch.tensor([*mine, True], device=device)
        self._where = {
            i: torch.tensor([b for b, _ in some], device=device) for i, some in where.items()
        }
        # Not the group itself: it would live on when it is destroyed, and abort the process.
        self._mesh, self._dim = _one_dimension(mesh, dims)
        self._started: tuple[Any, Tensor] | None = None

    def start(self, norms: Sequence[Tensor], flag: bool) -> None:
        """Begin to add up the parameters' numbers among ``norms``, a (B,) for each set."""
        device = self._mine.device
        numbers = [norms[i][b].to(torch.float64) for i, b in self._where.items()]
        last = torch.full((1,), float(flag), dtype=torch.float64, device=device)
        total = torch.where(self._mine, torch.cat([*numbers, last]), 0.0)
        self._started = (
            dist.all_reduce(total, group=self._mesh.get_group(self._dim), async_op=True),
            total,
        )

    def finish(self, norms: Sequence[Tensor]) -> Tensor:
        """Write the sums over the parameters' numbers; the number of ranks that had the flag."""
        assert self._started is not None
        (handle, total), self._started = self._started, None
        handle.wait()
        first = 0
        for i, b in self._where.items():
            norms[i][b] = total[first : first + len(b)].to(norms[i].dtype)
            first += len(b)
        return total[-1]


def _one_dimension(mesh: DeviceMesh, dims: list[int]) -> tuple[DeviceMesh, int]:
    """A mesh, and the dimension of it that is these of ``mesh`` in one."""
    if len(dims) == 1:
        return mesh, dims[0]
    names = mesh.mesh_dim_names
    if names is None:
        raise RuntimeError(
            f"parameters are cut over dimensions {dims} of a mesh without names; name them: "
            'init_device_mesh(..., mesh_dim_names=("dp", "tp"))'
        )
    part = mesh if len(dims) == mesh.ndim else mesh[tuple(names[dim] for dim in dims)]
    return part._flatten(), 0


class GlobalNorms:
    """The squared norms of whole parameters, from those of the parts on each rank.

    The norms that a step leaves are those that the next one needs. So they are added up from the
    end of a step on, while the next forward and backward pass run, and nobody waits for them. That
    needs ranks alike: what is written in between is written on all of them, in whatever part.
    """

    def __init__(self) -> None:
        self._sets: list[StepSet] = []
        self._sums: list[MeshSum] = []
        self._norms: list[Tensor] | None = None  # of the sums that are under way
        self._flag: tuple[Tensor, torch.cuda.Event | None] | None = None

    def start(self, sets: Sequence[StepSet], flag: bool) -> None:
        """Begin to add up the norms of the weights as they are now.

        Args:
            sets: the same on every rank, in the same order.
            flag: whether this rank has found a write that changed no version; all will hear of it.
        """
        if not (len(sets) == len(self._sets) and all(map(operator.is_, sets, self._sets))):
            self._lay_out(sets)
        self._norms = [each.sq_norms() for each in sets]
        for each in self._sums:
            each.start(self._norms, flag)

    def finish(self, sets: Sequence[StepSet]) -> list[Tensor]:
        """``||W_b||^2`` of whole parameters, (B,), for each set, as they are now."""
        same = len(sets) == len(self._sets) and all(map(operator.is_, sets, self._sets))
        valid = same and not any(s.norms is None or s.norms.stale() for s in sets)
        if self._norms is not None and not valid:  # what is under way comes to its end first
            self._collect()
        if self._norms is None:
            self.start(sets, flag=False)
        return self._collect()

    def _collect(self) -> list[Tensor]:
        assert self._norms is not None
        norms, self._norms = self._norms, None
        flags = [each.finish(norms) for each in self._sums]
        self._keep_flag(torch.stack(flags).sum())
        return norms

    def _keep_flag(self, flag: Tensor) -> None:
        if self._flag is None and flag.device.type == "cuda":
            here = torch.empty_like(flag, device="cpu", pin_memory=True)
            event = torch.cuda.Event()
            here.copy_(flag, non_blocking=True)
            event.record()
            self._flag = here, event
        elif flag.device.type != "cuda":  # a flag that nobody has asked for yet is not lost
            self._flag = (flag if self._flag is None else flag + self._flag[0]), None

    def flagged(self) -> bool:
        """Whether any rank had the flag; on GPUs as of a step ago, for which nobody has to wait.

        All ranks hear of it at the same step, so that they go on alike.
        """
        if self._flag is None:
            return False
        (flag, event), self._flag = self._flag, None
        if event is not None:
            event.synchronize()
        return bool(flag > 0)

    def _lay_out(self, sets: Sequence[StepSet]) -> None:
        meshes: dict[DeviceMesh, dict[int, list[tuple[int, Cut]]]] = {}
        for i, each in enumerate(sets):
            for b, (cut, block) in enumerate(zip(each.cuts, each.blocks or ())):
                if cut is not None and block.uses_norm:
                    meshes.setdefault(cut.mesh, {}).setdefault(i, []).append((b, cut))
        self._sums = [
            MeshSum(mesh, where, sets[next(iter(where))].device) for mesh, where in meshes.items()
        ]
        self._sets = list(sets)


def whole_sq_norms(params: Sequence[Tensor]) -> list[Tensor]:
    """``||W||_F^2`` of whole parameters, 0-dim each; where some are cut, an all-reduce a mesh."""
    norms = [sq_norm(part_here(param)) for param in params]
    meshes: dict[DeviceMesh, list[tuple[int, Cut]]] = {}
    for i, param in enumerate(params):
        cut = Cut.of(param)
        if cut is not None:
            meshes.setdefault(cut.mesh, []).append((i, cut))
    for mesh, cuts in meshes.items():
        device = norms[cuts[0][0]].device
        numbers = [torch.stack([norms[i].to(torch.float64) for i, _ in cuts])]
        total = MeshSum(mesh, {0: [(k, cut) for k, (_, cut) in enumerate(cuts)]}, device)
        total.start(numbers, flag=False)
        total.finish(numbers)
        for (i, _), norm in zip(cuts, numbers[0]):
            norms[i] = norm.to(norms[i].dtype)
    return norms
