"""How the local Hessian of a layer changes when a batch norm follows: two factors a channel.

With U the patches (d, m) that a layer's weight sees, A = sum of (u - mean)(u - mean)^T, and for a
train-mode batch norm v_i = Var[z_i] + eps, rho_i = Var[z_i] / v_i, zhat_i the normalised output of
channel i before gamma:

    weight:  H_i = gamma_i^2 / v_i (A - (2 - rho_i) / m u_i u_i^T),  u_i = A w_i / sqrt(v_i)
    input:   H = W^T M W,  M_i = gamma_i^2 / v_i (I - 11^T/m - (2 - rho_i) / m zhat_i zhat_i^T)

exactly, and Gauss-Newton. Without a batch norm A is not centred and the factors are 1; with one in
eval mode they are gamma_i^2 / (running_var_i + eps). The derivation is in docs/local-hessian.md.
The paper's approximation (17)-(18) drops the terms in 1/m.

So all that a batch norm brings is, for each channel, a ``scale`` that multiplies A or the identity,
and a ``direction`` whose outer product is taken away. :mod:`lhkernels.hessian.weight_form` and
:mod:`lhkernels.hessian.input_form` make products of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# scale and direction; None is 1, and 0.
Factors: TypeAlias = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class BatchNorm:
    """``gamma (z - mean z) / sqrt(var z + eps)`` of each channel.

    Attributes:
        gamma: (n_out,).
        eps: added to the variance.
        running_var: (n_out,), where the batch's own statistics are not used; None in train mode.
    """

    gamma: Tensor
    eps: float
    running_var: Tensor | None

    @classmethod
    def read(cls, norm: Any, x: Tensor) -> BatchNorm:
        """What the module does; without a weight of its own, gamma is 1 in ``x``'s dtype."""
        gamma = x.new_ones(norm.num_features) if norm.weight is None else norm.weight.detach()
        trains = norm.training or norm.running_mean is None
        return cls(gamma, norm.eps, None if trains else norm.running_var.detach())

    def fixed_scale(self) -> Tensor | None:
        """``gamma^2 / v`` with running statistics, (n_out,); None in train mode."""
        if self.running_var is None:
            return None
        return torch.square(self.gamma) / (self.running_var + self.eps)

    def batch_factors(self, var: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """``gamma^2 / v`` and ``gamma / v sqrt((2 - rho) / m)`` of the batch's own variance.

        (n_out,) each. The second times ``z - mean z``, or times ``A w``, is the direction.
        """
        root = torch.sqrt(var + self.eps)
        remainder = (2 - var / torch.square(root)) / places
        return torch.square(self.gamma / root), self.gamma / torch.square(root) * remainder.sqrt()
