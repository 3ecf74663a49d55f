r"""The step as one multi-tensor Triton kernel: B tensors, one launch.

For every tensor b, with its weight W, gradient g and momentum buffer m, in float32:

    s = coefficient * ||W||^2             (or the coefficient alone, or given, or no scale at all)
    d = s * (±g / grad_scale + weight_decay * W)
    m <- momentum * m + (1 - dampening) * d
    W <- W - lr * m                       (nesterov: d + momentum * m; no momentum: d)

A program updates one chunk of one tensor. It first sums the tensor's partial norms, one per chunk,
which the previous step left; then it reads W, g and m once, writes W and m once, and leaves the sum
of squares of the weights it stored as its own partial norm: the norm for the next step costs no
memory traffic. Nothing is added atomically, and no sum's order depends on which thread holds what,
so the bits are the same in every run, and those of :func:`refresh_norms`.

Only this module imports triton, and :mod:`lhkernels.asm`, which compiles it without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lhkernels.hyperparameters import Hyperparameters
from lhkernels.step.triton_tables import Tables

# With tiles of 1024 elements, 8 for each of 128 threads: one 128-bit access of bfloat16, or two of
# float32. A thread requests 48 bytes or more before it waits, and with 72 registers for each, 896
# threads of a multiprocessor do so at a time: 42 KiB in flight, where an H100 needs 32 to 64 to
# cover its memory's latency (`lhkernels asm` counts them). Larger tiles take more registers.
NUM_WARPS = 4
NORM_LANES = tl.constexpr(1024)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
DTYPES: dict[torch.dtype | None, Any] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
"""What parameters, gradients and buffers may be, in any mixture."""


@triton.jit
def _value(x):
    """A number of the host's as it is; one on the device, loaded."""
    if x.dtype.is_ptr():
        x = tl.load(x)
    return x


@triton.jit
def _tree_sum(x, N: tl.constexpr):
    """Add the upper half to the lower until one number is left: an order that no layout changes."""
    for level in tl.static_range(1, 20):
        if (N >> level) > 0:
            x = tl.sum(tl.reshape(x, (2, N >> level)), axis=0)
    return tl.sum(x, axis=0)


@triton.jit
def _sq_norm(b, extents, partials, N: tl.constexpr):
    """``||W_b||^2`` from its chunks' partial sums; 1 where the scale has no norm."""
    first = tl.load(extents + 4 * b + 2)
    count = tl.load(extents + 4 * b + 3)
    lanes = tl.arange(0, N)
    acc = tl.zeros((N,), tl.float32)
    i = 0
    while i < count:
        acc += tl.load(partials + first + i + lanes, mask=i + lanes < count, other=0.0)
        i += N
    return tl.where(count < 0, 1.0, _tree_sum(acc, N))


@triton.jit
def _locate(chunk, pointers, extents, owners, TILE: tl.constexpr):
    """A chunk's tensor, first element and size, and how many of its tiles are full and aligned."""
    b = tl.load(owners + chunk)
    size = tl.load(extents + 4 * b)
    per_chunk = tl.load(extents + 4 * b + 1)
    start = (chunk - tl.load(extents + 4 * b + 2)) * per_chunk  # int64, as the table is
    count = tl.minimum(size - start, per_chunk).to(tl.int32)
    full = tl.load(pointers + 4 * b + 3).to(tl.int32) * (count // TILE)
    return b, start, count, full


@triton.jit
def _address(pointers, column, b, start, DTYPE: tl.constexpr):
    return tl.load(pointers + 4 * b + column) + start * (DTYPE.primitive_bitwidth // 8)


@triton.jit
def _tile(address, elements, DTYPE: tl.constexpr, MASKED: tl.constexpr):
    """Pointers to a tile. A table's integers say nothing of the alignment that full tiles have."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if not MASKED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + elements


@triton.jit
def _random_bits(seed, stream, element, TILE: tl.constexpr):
    """Random uint32 for ``element ...`` of a tensor: Philox, one call for 4 elements.

    7 of its usual 10 rounds pass the same statistical tests (Salmon et al., SC 2011, table 2).
    """
    call = element // 4 + tl.arange(0, TILE // 4)
    zero = tl.zeros((TILE // 4,), tl.uint32)
    low, high = call.to(tl.uint32), (call >> 32).to(tl.uint32)
    ours, theirs = zero + stream.to(tl.uint32), zero + (stream >> 32).to(tl.uint32)
    x0, x1, x2, x3 = tl.philox(seed, low, high, ours, theirs, 7)
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (TILE,))


@triton.jit
def _round_stochastically(x, bits, DTYPE: tl.constexpr):
    """x, up or down to a number of DTYPE with the probabilities that make the mean x."""
    DROPPED: tl.constexpr = x.dtype.fp_mantissa_width - DTYPE.fp_mantissa_width
    noise = bits >> (32 - DROPPED)
    raised = x.to(tl.uint32, bitcast=True) + noise
    result = (raised >> DROPPED << DROPPED).to(tl.float32, bitcast=True)
    if DTYPE.is_fp16():  # below 2^-14 its numbers are the multiples of 2^-24
        steps = tl.floor(tl.abs(x) * 16777216.0 + noise.to(tl.float32) / 8192.0) / 16777216.0
        result = tl.where(tl.abs(x) < 0.00006103515625, tl.where(x < 0, -steps, steps), result)
    return tl.where(tl.abs(x) < float("inf"), result, x)


@triton.jit
def _round(x, DTYPE: tl.constexpr):
    """x in DTYPE, to nearest, ties to even; triton's interpreter would truncate to bfloat16."""
    if INTERPRETED and DTYPE.is_bf16():
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


# No argument is specialised on its value: no other lr, number of chunks or address recompiles.
@triton.jit(do_not_specialize=list(range(17)))
def step_kernel(
    pointers, extents, owners, coefficients, partials, parity, chunks, unseen,
    lr, momentum, dampening, weight_decay, scales, grad_scale, found_inf, seed, streams,
    PARAM: tl.constexpr, GRAD: tl.constexpr, BUFFER: tl.constexpr,
    NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One chunk of the step in the module's docstring; what is None costs nothing.

    Every product with a sum is an explicit fma, so that all variants of this kernel round alike.
    Gradient and momentum are evict_first: nobody reads them before the next backward pass, but the
    next forward pass reads W, from L2 if it is still there.

    The weights read are squared too: another sum than the last step left is somebody else's write.
    """
    chunk = tl.program_id(0)
    b, start, count, full = _locate(chunk, pointers, extents, owners, TILE)
    if partials is not None:
        old = partials + _value(parity) * chunks
        new = partials + (1 - _value(parity)) * chunks
    if found_inf is not None and tl.load(found_inf) != 0:  # nothing moves, not even the norms
        if partials is not None:
            tl.store(new + chunk, tl.load(old + chunk))
        return

    w_address = _address(pointers, 0, b, start, PARAM)
    g_address = _address(pointers, 1, b, start, GRAD)
    lr = _value(lr).to(tl.float32)
    weight_decay = _value(weight_decay).to(tl.float32)
    sign = -1.0 if MAXIMIZE else 1.0
    if grad_scale is not None:
        sign = tl.div_rn(sign, tl.load(grad_scale).to(tl.float32))
    if BUFFER is not None:
        m_address = _address(pointers, 2, b, start, BUFFER)
        momentum = _value(momentum).to(tl.float32)
        share = 1 - _value(dampening).to(tl.float32)
    if seed is not None:
        seed = _value(seed).to(tl.int64)
        stream = tl.load(streams + b)
    if scales is not None:
        s = tl.load(scales + b).to(tl.float32)
    elif coefficients is not None:
        s = tl.load(coefficients + b) * _sq_norm(b, extents, old, NORM_LANES)

    acc = tl.zeros((TILE,), tl.float32)
    read = tl.zeros((TILE,), tl.float32)
    tile = 0
    for MASKED in tl.static_range(2):  # a loop over the full tiles, and one over what is left
        end = tl.cdiv(count, TILE) if MASKED else full
        while tile < end:  # not `for`: triton 3.6's interpreter can't, under numpy 2.4
            elements = tile * TILE + tl.arange(0, TILE)
            mask = elements < count if MASKED else None
            w_tile = _tile(w_address, elements, PARAM, MASKED)
            g_tile = _tile(g_address, elements, GRAD, MASKED)
            w = tl.load(w_tile, mask=mask).to(tl.float32)
            g = tl.load(g_tile, mask=mask, eviction_policy="evict_first").to(tl.float32)
            if unseen is not None:
                read = _add_squares(read, w, mask)
            d = g * sign
            d = tl.where(weight_decay != 0, tl.fma(w, weight_decay, d), d)  # 0 * infinity is 0 here
            if scales is not None or coefficients is not None:
                d *= s
            if BUFFER is not None:
                m_tile = _tile(m_address, elements, BUFFER, MASKED)
                m = tl.load(m_tile, mask=mask, eviction_policy="evict_first").to(tl.float32)
                m = tl.fma(m, momentum, d * share)
                tl.store(m_tile, _round(m, BUFFER), mask=mask, eviction_policy="evict_first")
                d = tl.fma(m, momentum, d) if NESTEROV else m
            w = tl.fma(d, -lr, w)
            if seed is not None:
                bits = _random_bits(seed, stream, start + tile * TILE, TILE)
                w = _round_stochastically(w, bits, PARAM)
            w = _round(w, PARAM)
            tl.store(w_tile, w, mask=mask)
            if partials is not None:
                acc = _add_squares(acc, w, mask)
            tile += 1
    if partials is not None:
        tl.store(new + chunk, _tree_sum(acc, TILE))
    if unseen is not None:
        kept = tl.load(extents + 4 * b + 3) >= 0
        expected, found = tl.load(old + chunk), _tree_sum(read, TILE)
        both_nan = (expected != expected) & (found != found)
        tl.store(unseen, b + 1, mask=kept & (expected != found) & (both_nan == 0))


@triton.jit
def _add_squares(acc, w, mask):
    """The weights' squares, lane by lane."""
    w = w.to(tl.float32)
    if mask is not None:
        w = tl.where(mask, w, 0.0)
    return tl.fma(w, w, acc)


@triton.jit(do_not_specialize=list(range(7)))
def refresh_kernel(
    pointers, extents, owners, partials, parity, chunks, ids,
    PARAM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The partial norm of one stored chunk, in the order of :func:`step_kernel`."""
    chunk = tl.load(ids + tl.program_id(0))
    b, start, count, full = _locate(chunk, pointers, extents, owners, TILE)
    address = _address(pointers, 0, b, start, PARAM)
    acc = tl.zeros((TILE,), tl.float32)
    tile = 0
    for MASKED in tl.static_range(2):
        end = tl.cdiv(count, TILE) if MASKED else full
        while tile < end:
            elements = tile * TILE + tl.arange(0, TILE)
            mask = elements < count if MASKED else None
            w = tl.load(_tile(address, elements, PARAM, MASKED), mask=mask)
            acc = _add_squares(acc, w, mask)
            tile += 1
    tl.store(partials + _value(parity) * chunks + chunk, _tree_sum(acc, TILE))


@triton.jit(do_not_specialize=list(range(5)))
def sq_norm_kernel(extents, partials, parity, chunks, out):
    """One tensor's squared norm, the one :func:`step_kernel` would use."""
    b = tl.program_id(0)
    tl.store(out + b, _sq_norm(b, extents, partials + _value(parity) * chunks, NORM_LANES))


def step(
    tables: Tables,
    h: Hyperparameters,
    scales: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: int | Tensor | None = None,
) -> None:
    """Step all tensors of ``tables``: one launch, and a second tiny one if they are capturable.

    Tensors among the arguments lie on the tables' device, where alone they are read.

    Args:
        tables: up to date; their norms, if they keep any, must be those of the stored weights.
        h: the hyperparameters; those that are tensors on a device are read there.
        scales: ``s_b``, (B,); default: from the tables' coefficients and norms.
        grad_scale: 1-element; gradients are divided by it.
        found_inf: 1-element; anything but 0 leaves everything as it is.
        seed: round bfloat16 or float16 weights stochastically; pass another one every step.
    """
    if not tables.chunks:
        return
    param, grad, buffer = tables.dtypes
    if param == torch.float32:
        seed = None
    elif isinstance(seed, int):
        seed = _number(seed % 2**31)  # one integer type, whatever its size
    with _on(tables.device):
        step_kernel[(tables.chunks,)](
            tables.pointers, tables.extents, tables.owners,
            tables.coefficients if scales is None else None,
            tables.partials, _number(tables.parity), tables.chunks, tables.unseen,
            _real(h.lr), _real(h.momentum), _real(h.dampening), _real(h.weight_decay),
            scales, grad_scale, found_inf, seed, None if seed is None else tables.streams,
            PARAM=DTYPES[param], GRAD=DTYPES[grad], BUFFER=DTYPES[buffer] if buffer else None,
            NESTEROV=h.nesterov, MAXIMIZE=h.maximize, TILE=tables.tile, num_warps=NUM_WARPS,
        )  # fmt: skip
        if tables.partials is not None:
            tables.swap()


def refresh_norms(tables: Tables, tensors: Sequence[int]) -> None:
    """Recompute these tensors' partial norms from their stored weights: at most one launch."""
    if not tensors:
        return
    ids = tables.chunk_ids(tensors)
    if not ids.numel():
        return
    with _on(tables.device):
        refresh_kernel[(ids.numel(),)](
            tables.pointers, tables.extents, tables.owners,
            tables.partials, _number(tables.parity), tables.chunks, ids,
            PARAM=DTYPES[tables.dtypes[0]], TILE=tables.tile, num_warps=NUM_WARPS,
        )  # fmt: skip


def sq_norms(tables: Tables) -> Tensor:
    """``||W_b||^2`` of the stored weights, (B,) float32, or 1 without a norm: one launch."""
    out = torch.empty(len(tables), dtype=torch.float32, device=tables.device)
    with _on(tables.device):
        sq_norm_kernel[(len(tables),)](
            tables.extents, tables.partials, _number(tables.parity), tables.chunks, out
        )
    return out


def _real(x: float | Tensor) -> float | Tensor:
    """An int would be another signature than a float, and so another kernel."""
    return x if isinstance(x, Tensor) else _number(float(x))


def _number(x: Any) -> Any:
    """The number itself; a tensor for Triton's interpreter, where numbers have no dtype to ask."""
    if not INTERPRETED.value or isinstance(x, Tensor):
        return x
    dtype = torch.float32 if isinstance(x, float) else torch.int64
    return torch.tensor(x, dtype=dtype, device="cpu")


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever its arguments'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
