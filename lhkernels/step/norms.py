"""Norms carried from step to step: which of them are still those of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Mark: TypeAlias = tuple[int, int, int]  # a weight's storage, address and version


class CarriedNorms:
    """The norms that a step leaves for the next one, each valid while nobody else wrote its weight.

    A weight is marked with its storage, address and version after the step; where the mark has
    changed by the next step, the norm is recomputed. Writes that change no mark are found by the
    kernels, in what they read (docs/step.md, section 3).

    Args:
        params: of a set.
        uses_norm: of which of them norms are kept.
        wholes: the DTensors that the params are parts of, whose versions count as well (operations
            on a DTensor bump its own, kernels on its part the part's); or the params again.

    Attributes:
        carries: False recomputes every norm for every step.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        uses_norm: Sequence[bool],
        wholes: Sequence[Tensor],
    ) -> None:
        self._params, self._wholes = params, wholes
        self._weights = [i for i, uses in enumerate(uses_norm) if uses]
        self.carries = True
        self.forget()

    def forget(self) -> None:
        """Recompute every norm for the next step."""
        self._marks: list[Mark] = [(0, 0, -1)] * len(self._weights)
        self._storages: list[StorageWeakRef] = []

    def stale(self) -> bool:
        """Whether any norm would have to be recomputed now."""
        return not self.carries or self._look() != self._marks

    @contextmanager
    def renewed(self) -> Iterator[list[int]]:
        """The positions of the weights that somebody else wrote since the last step.

        Inside, their norms have to be recomputed, and a step may be taken. Afterwards, unless it
        failed, the norms are those of the weights as they are then.
        """
        params, weights = self._params, self._weights
        seen = self._look()
        same = seen == self._marks
        if self.carries:
            yield [] if same else [i for i, a, b in zip(weights, self._marks, seen) if a != b]
        else:
            yield weights
        if not same:
            # while it is referred to, weakly, no other storage can come to have its identity
            self._storages = [StorageWeakRef(params[i].untyped_storage()) for i in weights]
        self._marks = [(s, a, v) for (s, a, _), v in zip(seen, self._versions())]

    def _look(self) -> list[Mark]:
        weights = [self._params[i] for i in self._weights]
        return [
            (weight.untyped_storage()._cdata, weight.data_ptr(), version)
            for weight, version in zip(weights, self._versions())
        ]

    def _versions(self) -> list[int]:
        params, wholes = self._params, self._wholes
        if wholes is params:
            return [params[i]._version for i in self._weights]
        return [params[i]._version + wholes[i]._version for i in self._weights]


def warn_of_unseen_write(name: str | int) -> None:
    """Warn that a step was taken, or nearly so, with the norm of a weight as it no longer was."""
    warnings.warn(
        f"parameter {name!r} has been written since the last step without its version counter "
        "(through p.data, a NumPy view or shared memory, as nn.utils.vector_to_parameters does, or "
        "by another optimizer with fused=True), so the norm kept from that step was not this "
        "weight's. Every step now computes norms anew, with one more read of the weights: write to "
        "parameters themselves under torch.no_grad(), or call optimizer.invalidate_norms() after "
        "such writes",
        stacklevel=5,  # the line that calls an optimizer's step
    )
