"""What the Triton kernel reads beside the tensors themselves: tables of addresses, sizes and norms.

They live on the device, so that one launch serves any number of tensors: a kernel's arguments have
room for the addresses of a hundred or two. Nothing here imports triton.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

TILE = 1024
"""Elements that a program handles at a time; the order in which a norm is summed depends on it."""
MIN_CHUNK = 16 * TILE
"""Elements of a chunk, the share of one program, in tensors of up to 16 Mi elements."""
ALIGNMENT = 16
"""Bytes: what a 128-bit access needs."""
NO_NORM = -1
"""In place of the number of partial sums, where a scale does not use the norm."""
CAPTURES = 16
"""Graphs for which pinned memory is set aside: not every torch can allocate it in a capture."""


def chunk_elements(numel: int, minimum: int = MIN_CHUNK) -> int:
    r"""Elements per chunk of a tensor of ``numel``: a power of two, at least ``minimum``.

    A program reads all partial sums of its tensor, 4 numel / chunk bytes, mostly from L2, and 10 or
    more bytes of memory per element of its chunk. Chunks of :math:`\sqrt{16\,numel}` elements keep
    the first at 1/40 of the second or less whatever the size, without a second level of sums, which
    programs would have to wait for. A function of the size alone and not of the device: a norm has
    the same bits everywhere.
    """
    return max(minimum, 1 << math.ceil(math.log2(max(16 * numel, 1)) / 2))


class Tables:
    """The tables of B parameters of one device and dtype.

    ``pointers``  (B, 4) int64: parameter, gradient, buffer; 1 if all three are aligned
    ``extents``   (B, 4) int64: elements, elements per chunk, first chunk, partial sums of the norm
    ``owners``    (chunks,) int32: whose chunk it is
    ``partials``  (2, chunks) float32: chunks' sums of squares; row ``parity`` is of the stored
                  weights, the other is for the step to write. None where no norms are kept.
    ``unseen``    (1,) int32: 1 + the position of a weight that has another norm than the partial
                  sums, which the step sets; 0 while there is none
    ``streams``   (B,) int64: the tensors' numbers in the random draws

    Norms are unknown at first: refresh them before the first step. The tables keep no tensor alive,
    and fit parameters of these sizes only. They must outlive every CUDA graph that holds a step.

    Args:
        params: dense.
        grads, buffers: as in :meth:`update`; they may come later, and change dtype.
        uses_norm: whose scale has a norm in it; None keeps no norms.
        coefficients: (B,) float32 on the device: the scale, or what the squared norm is multiplied
            with to give it. None for plain SGD, or where every step is given its scales. May be
            replaced at any time.
        streams: default: the positions.
        capturable: keep ``parity`` on the device, so that a CUDA graph can replay the step.
        tile, min_chunk: powers of two; tests make them small, to cross borders with few elements.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor] | None = None,
        buffers: Sequence[Tensor] | None = None,
        *,
        uses_norm: Sequence[bool] | None = None,
        coefficients: Tensor | None = None,
        streams: Sequence[int] | None = None,
        capturable: bool = False,
        tile: int = TILE,
        min_chunk: int | None = None,
    ) -> None:
        if coefficients is not None and uses_norm is None:
            raise ValueError("coefficients without uses_norm: say which of them norms multiply")
        self.device = params[0].device
        self.dtypes: tuple[torch.dtype | None, ...] = (params[0].dtype, None, None)
        self.coefficients = coefficients
        numbers = list(range(len(params)) if streams is None else streams)
        self.streams = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        self.capturable = capturable
        self.tile = tile
        self._cut([p.numel() for p in params], uses_norm, min_chunk or 16 * tile)
        self.pointers = torch.empty(len(params), 4, dtype=torch.int64, device=self.device)
        self._addresses: list[list[int]] = [[], [], []]
        self._captured = 0
        self._set_aside: Tensor | None = None
        if capturable and self.device.type == "cuda":
            set_aside = torch.empty(CAPTURES, len(params), 4, dtype=torch.int64, device="cpu")
            self._set_aside = set_aside.pin_memory()
        self.update(params, grads, buffers)

    def _cut(self, sizes: list[int], uses_norm: Sequence[bool] | None, min_chunk: int) -> None:
        """Number the chunks, those of large tensors first: the last programs are the shortest."""
        order = sorted(range(len(sizes)), key=lambda b: -sizes[b])
        extents = [[0, 0, 0, NO_NORM] for _ in sizes]
        counts = [0] * len(sizes)
        self.chunks = 0
        for b in order:
            per_chunk = chunk_elements(sizes[b], min_chunk)
            counts[b] = -(-sizes[b] // per_chunk)
            norm = counts[b] if uses_norm is not None and uses_norm[b] else NO_NORM
            extents[b] = [sizes[b], per_chunk, self.chunks, norm]
            self.chunks += counts[b]
        owners = torch.tensor(order, dtype=torch.int32, device="cpu")
        owners = owners.repeat_interleave(torch.tensor([counts[b] for b in order], device="cpu"))
        self._spans = [(e[2], e[2] + count) for e, count in zip(extents, counts)]
        self.extents = torch.tensor(extents, dtype=torch.int64, device=self.device)
        self.owners = owners.to(self.device)
        self.partials: Tensor | None = None
        self.unseen: Tensor | None = None
        self.parity: int | Tensor = 0
        if uses_norm is not None:
            self.partials = torch.zeros(2, self.chunks, dtype=torch.float32, device=self.device)
            self.unseen = torch.zeros(1, dtype=torch.int32, device=self.device)
            if self.capturable:
                self.parity = torch.zeros((), dtype=torch.int32, device=self.device)

    def __len__(self) -> int:
        return len(self._spans)

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor] | None = None,
        buffers: Sequence[Tensor] | None = None,
    ) -> bool:
        """Point to these tensors; whether anything had to be sent.

        At most one copy to the device, which the host does not wait for. A graph that captures it
        sends its own addresses again at every replay, and so must whoever steps beside that graph.

        Args:
            params: of the sizes and dtype that the tables were built for.
            grads: of one dtype, in the parameters' layout; None leaves them and the buffers.
            buffers: likewise; None for a step without momentum.
        """
        addresses = [list(map(Tensor.data_ptr, params)), *self._addresses[1:]]
        if grads is not None:
            addresses[1:] = (list(map(Tensor.data_ptr, each or ())) for each in (grads, buffers))
            self.dtypes = (params[0].dtype, grads[0].dtype, buffers[0].dtype if buffers else None)
        capturing = self._set_aside is not None and torch.cuda.is_current_stream_capturing()
        if addresses == self._addresses and not capturing and not self._captured:
            return False
        self._addresses = addresses
        columns = [column or [0] * len(self) for column in addresses]
        staged = torch.empty(len(self), 4, dtype=torch.int64, device="cpu")
        staged[:, :3] = torch.tensor(columns, dtype=torch.int64, device="cpu").T
        staged[:, 3] = staged[:, :3].remainder(ALIGNMENT).sum(1) == 0
        self._send(self._keep(staged) if capturing else staged, self.pointers)
        return True

    def chunk_ids(self, tensors: Iterable[int]) -> Tensor:
        """The chunks of these tensors, int32, on the device."""
        spans = [torch.arange(*self._spans[b], dtype=torch.int32, device="cpu") for b in tensors]
        staged = torch.cat(spans or [torch.empty(0, dtype=torch.int32, device="cpu")])
        return self._send(staged, torch.empty_like(staged, device=self.device))

    def swap(self) -> None:
        """The partial sums just written become those of the stored weights."""
        if isinstance(self.parity, Tensor):
            self.parity.bitwise_xor_(1)
        else:
            self.parity ^= 1

    def _send(self, staged: Tensor, to: Tensor) -> Tensor:
        """Copy without waiting. Fresh pinned memory every time is safe and cheap: torch's allocator
        gives a block out again only after the copies that read it."""
        if self.device.type == "cuda" and not staged.is_pinned():
            staged = staged.pin_memory()
        return to.copy_(staged, non_blocking=True)

    def _keep(self, staged: Tensor) -> Tensor:
        """The same in pinned memory that stays as it is, for a graph to read at every replay."""
        assert self._set_aside is not None
        if self._captured == CAPTURES:
            raise RuntimeError(
                f"this step is in {CAPTURES} CUDA graphs, and memory was set aside for no more; "
                "build a new optimizer for the next one"
            )
        kept = self._set_aside[self._captured]
        self._captured += 1
        return kept.copy_(staged)
