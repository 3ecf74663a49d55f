"""Scale-amended SGD as the paper states it: the specification that every fast path is held against.

Zhang, Chen, Liu, *On the Local Hessian in Back-propagation*, NeurIPS 2018; numbers in brackets are
the paper's equations. Plain PyTorch, one tensor at a time, any floating point or complex dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lhkernels.hyperparameters import Hyperparameters


def mean_squared_row_norm(weight: Tensor) -> Tensor:
    r"""``||W||^2_{2,mu} = (1/#rows) sum_i w(i)^T w(i)``, a 0-dim real tensor.

    ``weight`` is (rows, ...): a row is an output unit, or for ``W^T`` an input unit (for a
    convolution an input *channel* with all its taps).
    """
    return weight.abs().square().flatten(1).sum(1).mean()


def chain_scales(
    weights: Sequence[Tensor], positions: Sequence[tuple[int, int]] | None = None
) -> list[Tensor]:
    r"""Algorithm 2 with (24): ``s_b = 1 / (m m_{b,W})`` for a chain of linear or conv blocks.

    Args:
        weights: ``W_1 .. W_B`` from the network's input to its output, each (n_out, n_in, ...).
        positions: per block the numbers of positions ``(P_in, P_out)`` of its input and output,
            such as 32 * 32 and 16 * 16. The paper's (24) is for fully connected layers, one
            position each: the default. What lies between two blocks (pooling) passes m on by the
            ratio of its output's units to its input's (docs/algorithm.md).

    Returns:
        ``s_1 .. s_B``, the scales of the gradients of ``W_1 .. W_B``.

    Example:
        >>> import torch
        >>> from lhkernels.reference import chain_scales, sq_norm
        >>> weights = [torch.randn(32, 64), torch.randn(32, 32), torch.randn(10, 32)]
        >>> closed_form = [sq_norm(w) / 10 for w in weights]
        >>> torch.allclose(torch.stack(chain_scales(weights)), torch.stack(closed_form))
        True
    """
    positions = positions or [(1, 1)] * len(weights)
    scales: list[Tensor] = []
    m: float | Tensor = 1.0  # the backward factor at the network's output
    units_above = None  # what the block above reads
    for weight, (p_in, p_out) in zip(reversed(weights), reversed(positions), strict=True):
        n_out, n_in = weight.shape[:2]
        if units_above is not None:
            m = m * units_above / (n_out * p_out)  # pooling; 1 where nothing lies between
        rows = mean_squared_row_norm(weight)  # ||W||^2
        columns = mean_squared_row_norm(weight.transpose(0, 1))  # ||W^T||^2
        m_w = p_out / rows  # (24)
        m_z = (p_out * columns) / (p_in * rows)  # (24)
        scales.append(1 / (m * m_w))  # (22)
        m = m * m_z  # (23)
        units_above = n_in * p_in
    return scales[::-1]


def sq_norm(param: Tensor) -> Tensor:
    """``||W||_F^2``, 0-dim, in :func:`norm_dtype`."""
    real = torch.view_as_real(param) if param.is_complex() else param
    return real.to(norm_dtype(param.dtype)).square().sum()


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms and scales for parameters of ``dtype``: float32 or better."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def update(
    param: Tensor, grad: Tensor, buffer: Tensor | None, scale: Tensor | None, h: Hyperparameters
) -> Tensor | None:
    """One step of one parameter, in place; weight decay comes before the amendment, momentum after.

    Args:
        param: changed in place.
        grad: of the parameter's shape and dtype; never written.
        buffer: the momentum buffer, changed in place, or None before the parameter's first step.
        scale: ``s_b``, 0-dim and real; None is plain SGD, the operations of
            :class:`torch.optim.SGD` in their order.
        h: the hyperparameters.

    Returns:
        The momentum buffer; None where momentum is 0 and there was none.

    Example:
        >>> import torch
        >>> from lhkernels.hyperparameters import Hyperparameters
        >>> from lhkernels.reference import sq_norm, update
        >>> weight, grad = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
        >>> s = sq_norm(weight)  # 25: a last block of one unit
        >>> update(weight, grad, None, s, Hyperparameters(lr=0.01))
        >>> weight
        tensor([[2.7500, 4.0000]])
    """
    lr, weight_decay = h.lr, h.weight_decay
    d = -grad if h.maximize else grad
    if isinstance(weight_decay, Tensor):
        d = d + decay(param, weight_decay)
    elif weight_decay != 0:
        d = d.add(param, alpha=weight_decay)
    if scale is not None:
        d = d * scale
    if h.momentum != 0:
        if buffer is None:
            buffer = d.clone()
        else:
            buffer.mul_(h.momentum).add_(d, alpha=1 - h.dampening)
        d = d.add(buffer, alpha=h.momentum) if h.nesterov else buffer
    if isinstance(lr, Tensor):
        param.addcmul_(d, lr, value=-1)
    else:
        param.add_(d, alpha=-lr)
    return buffer


def decay(param: Tensor, weight_decay: Tensor) -> Tensor:
    """``weight_decay * W``; 0 where ``weight_decay`` is, even if W is infinite."""
    # The clone: a graph, if there is one, keeps this product's factors.
    return torch.where(weight_decay == 0, 0.0, param.clone() * weight_decay)


def step(
    param: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    scale: Tensor | None,
    h: Hyperparameters,
    momentum_dtype: torch.dtype | None = None,
    rounding: torch.Generator | None = None,
) -> Tensor | None:
    """:func:`update` in float32 or better, each result rounded once to the dtype it is stored in.

    The momentum buffer has ``momentum_dtype``, by default the parameter's dtype. Plain SGD without
    a ``momentum_dtype`` keeps torch's arithmetic, rounding after every operation. With a
    ``rounding`` generator, parameters of lower precision than float32 are rounded stochastically.
    """
    if not needs_rounding(param, [grad], scale is not None, momentum_dtype, rounding is not None):
        return update(param, grad, buffer, scale, h)
    working = torch.promote_types(param.dtype, norm_dtype(param.dtype))
    wide = param.to(working, copy=True)
    new = update(wide, grad.to(working), _copy(buffer, working), scale, h)
    param.copy_(wide if rounding is None else round_stochastically(wide, param.dtype, rounding))
    if new is None or buffer is None:
        return _copy(new, momentum_dtype or param.dtype)
    return buffer.copy_(new)


def needs_rounding(
    param: Tensor,
    grads: Sequence[Tensor],
    amended: bool,
    momentum_dtype: torch.dtype | None,
    stochastic: bool,
) -> bool:
    """Whether a step must go through a wider dtype (all parameters are of ``param``'s dtype)."""
    dtype = param.dtype
    if stochastic or (momentum_dtype or dtype) != dtype:
        return True
    if any(grad.dtype != dtype for grad in grads):
        return True
    return amended and torch.promote_types(dtype, norm_dtype(dtype)) != dtype


def round_stochastically(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round to one of the two neighbours in ``dtype``, so that the mean is the value itself."""
    if not dtype.is_floating_point or dtype.itemsize >= values.dtype.itemsize:
        return values.to(dtype)
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.abs().clamp_min(info.tiny)).exponent - 1
    ulp = torch.ldexp(torch.full_like(values, info.eps, dtype=torch.float64), exponent)
    uniform = torch.empty_like(ulp).uniform_(generator=generator)
    rounded = torch.floor(values / ulp + uniform) * ulp
    return torch.where(values.isfinite(), rounded, values.double()).to(dtype)


def _copy(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype, copy=True)
