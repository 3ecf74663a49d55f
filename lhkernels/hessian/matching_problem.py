"""The two problems that back-matching solves for one block, by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from lhkernels.hessian.snapshot import KeptRandomState

LossFunction = Callable[[Tensor, Any], Tensor]
Objective = Callable[[list[Tensor], str], Tensor]


@dataclass(frozen=True)
class BlockMatch:
    """What back-matching found for one block.

    Attributes:
        name: the class of the block's module.
        parameters: ``W_b^{k+1}``, by name, for every parameter that requires a gradient.
        target: ``z_b^{k+1/2}``, what the block above asks of this block's output; None for the last
            block, whose target is ``y``.
        loss: ``l_b(W_b^k, z_{b-1}^k)``, before both solves.
        loss_weight: ``l_b(W_b^{k+1}, z_{b-1}^k)``, after (3); None without parameters to solve for.
        loss_input: ``l_b(W_b^k, z_{b-1}^{k+1/2})``, after (4); None for the first block.
    """

    name: str
    parameters: dict[str, Tensor]
    target: Tensor | None
    loss: float
    loss_weight: float | None
    loss_input: float | None


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent: how many steps of what size, and the arguments that said so."""

    steps_name: str
    steps: int
    lr_name: str
    lr: float

    def __post_init__(self) -> None:
        steps, lr = self.steps, self.lr
        if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
            raise ValueError(
                f"{self.steps_name}={steps!r} is not a whole number >= 1; pass the gradient steps "
                "of each solve, such as 1"
            )
        if not isinstance(lr, Real) or isinstance(lr, bool) or not (0 < lr < math.inf):
            raise ValueError(
                f"{self.lr_name}={lr!r} is not a finite number > 0; pass the size of a gradient "
                "step, such as 0.1"
            )

    def descend(
        self, values: list[Tensor], gradients: list[Tensor], objective: Objective
    ) -> tuple[list[Tensor], float]:
        """From ``values``, where the gradients are given; the last values and their loss."""
        for step in range(1, self.steps + 1):
            values = [v.detach() - float(self.lr) * g for v, g in zip(values, gradients)]
            last = step == self.steps
            with torch.set_grad_enabled(not last):
                values = [value.requires_grad_(not last) for value in values]
                loss = objective(values, f"after {step} of {self._shown}; lower {self.lr_name}")
            if not last:
                gradients = _gradients(loss, values)
        return values, loss.item()

    @property
    def _shown(self) -> str:
        return f"{self.steps_name}={self.steps} with {self.lr_name}={self.lr:g}"


class MatchingProblem:
    """The two problems (3) and (4) of one block at ``(W_b^k, z_{b-1}^k)``.

    Inputs and outputs are handled as *changes* from ``z^k``: a change is often far below the
    rounding of ``z^k`` in float32, so ``z^{k+1/2} - z^k`` taken from stored values would be noise.
    """

    def __init__(self, index: int, module: nn.Module, z: Tensor, random: KeptRandomState) -> None:
        self.index, self.module, self.z, self.random = index, module, z, random
        self.random_state = random.get()
        self.parameters = {name: p.detach() for name, p in module.named_parameters()}
        self.trainable = [name for name, p in module.named_parameters() if p.requires_grad]
        # Buffers from before anything runs; every call gets copies, which it may update in place.
        self.buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        with torch.no_grad():
            self.output = self._checked(self.forward({}, None)).detach().clone()

    @property
    def label(self) -> str:
        return f"block {self.index} ({type(self.module).__name__})"

    def forward(self, parameters: dict[str, Tensor], change: Tensor | None) -> Any:
        """``F_b`` with some parameters replaced, at ``z_{b-1}^k`` + ``change``."""
        tensors = {
            **self.parameters,
            **{name: buffer.clone() for name, buffer in self.buffers.items()},
            **parameters,
        }
        # A copy of z, since the block may write to it (an in-place ReLU).
        z = self.z.clone() if change is None else self.z + change
        return torch.func.functional_call(self.module, tensors, (z,))

    def match_loss(self, loss_fn: LossFunction, y: Any) -> None:
        """The last block: its loss is the network's."""
        self.target: Tensor | None = None
        self._loss = lambda output: _checked_scalar(loss_fn(output, y))

    def match_change(self, change: Tensor) -> None:
        """A block that is asked to change its output by ``change``."""
        self.target = self.output + change
        # Half precision overflows, and rounds small squares to 0.
        dtype = torch.promote_types(change.dtype, torch.float32)
        self._loss = lambda output: 0.5 * (change - (output - self.output)).to(dtype).square().sum()

    def loss(self, parameters: dict[str, Tensor], change: Tensor | None, when: str) -> Tensor:
        """``l_b``, with the random numbers of the first evaluation; an error if not finite."""
        self.random.set(self.random_state)
        loss = self._loss(self.forward(parameters, change))
        if not bool(loss.isfinite()):
            raise ValueError(f"{self.label}: its loss is {loss.item()} {when}")
        return loss

    def solve(
        self, weights: GradientDescent, inputs: GradientDescent
    ) -> tuple[BlockMatch, Tensor | None]:
        """(3) and (4); also the change of ``z_{b-1}``, None for the first block."""
        names = self.trainable
        start = [self.parameters[name].requires_grad_() for name in names]
        change = torch.zeros_like(self.z).requires_grad_() if self.index > 0 else None
        loss = self.loss({}, change, "before any step; look at y, the parameters and loss_fn")
        # Both first steps start at (W^k, z^k), so one backward pass serves both.
        gradients = _gradients(loss, [*start, *([] if change is None else [change])])

        def of_weights(values: list[Tensor], when: str) -> Tensor:
            return self.loss(dict(zip(names, values)), None, when)

        def of_change(values: list[Tensor], when: str) -> Tensor:
            return self.loss({}, values[0], when)

        for tensor in start:  # what follows on the input's side needs no gradients of the weights
            tensor.requires_grad_(False)
        new: list[Tensor] = []
        loss_weight = loss_input = None
        if names:
            new, loss_weight = weights.descend(start, gradients[: len(names)], of_weights)
        if change is not None:
            (change,), loss_input = inputs.descend([change], gradients[-1:], of_change)
        match = BlockMatch(
            name=type(self.module).__name__,
            parameters=dict(zip(names, new)),
            target=self.target,
            loss=loss.item(),
            loss_weight=loss_weight,
            loss_input=loss_input,
        )
        return match, change

    def _checked(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{self.label} returned a {type(output).__name__}; a block has one tensor out: "
                "wrap it in a module that returns that tensor"
            )
        if not output.is_floating_point():
            raise ValueError(
                f"{self.label} returned {output.dtype}; back-matching needs floating-point outputs"
            )
        if not bool(output.isfinite().all()):
            raise ValueError(
                f"{self.label}: its output has NaN or infinity; look at x and the parameters"
            )
        return output


def _gradients(loss: Tensor, wrt: list[Tensor]) -> list[Tensor]:
    """Gradients of ``loss``, zero where it does not depend on a tensor."""
    if not wrt or not loss.requires_grad:
        return [torch.zeros_like(tensor) for tensor in wrt]
    return list(torch.autograd.grad(loss, wrt, allow_unused=True, materialize_grads=True))


def _checked_scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn returned a {type(loss).__name__}; it must return a tensor")
    if loss.ndim > 0 or not loss.is_floating_point():
        raise ValueError(
            f"loss_fn returned shape {tuple(loss.shape)} of {loss.dtype}; it must return a "
            "0-dimensional floating-point tensor, such as with reduction='mean'"
        )
    return loss
