"""Back-matching propagation, Procedure 1 of Zhang, Chen and Liu (NeurIPS 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lhkernels.hessian.matching_problem import (
    BlockMatch,
    GradientDescent,
    LossFunction,
    MatchingProblem,
)
from lhkernels.hessian.snapshot import KeptRandomState
from lhkernels.tables import table, to_text


@dataclass(frozen=True)
class BackMatching:
    """The outcome of :func:`.back_matching`: ``result[b]`` is the b-th block's, input to output.

    ``print(result)`` is a table. ``after (3)`` and ``after (4)`` are each block's loss after the
    solve for its weights and for its input, as a share of its loss before: the smaller, the better
    the gradient steps have matched what the block above asks for.
    """

    blocks: tuple[BlockMatch, ...]
    modules: tuple[nn.Module, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> BlockMatch:
        return self.blocks[index]

    def __iter__(self) -> Iterator[BlockMatch]:
        return iter(self.blocks)

    def state_dict(self) -> dict[str, Tensor]:
        """The new parameters under the names that they have in ``nn.Sequential(*blocks)``."""
        return {
            f"{index}.{name}": tensor
            for index, block in enumerate(self.blocks)
            for name, tensor in block.parameters.items()
        }

    @torch.no_grad()
    def apply_(self) -> None:
        """Write the new parameters into the blocks; gradients and buffers stay as they are."""
        for module, block in zip(self.modules, self.blocks):
            parameters = dict(module.named_parameters())
            for name, tensor in block.parameters.items():
                parameters[name].copy_(tensor)

    def __str__(self) -> str:
        header = ("", "block", "parameters", "loss", "after (3)", "after (4)")
        rows = [
            (
                index,
                block.name,
                sum(tensor.numel() for tensor in block.parameters.values()),
                f"{block.loss:.4g}",
                _share(block.loss_weight, block.loss),
                _share(block.loss_input, block.loss),
            )
            for index, block in enumerate(self.blocks)
        ]
        title = f"back-matching, {len(self)} blocks"
        return to_text(title, table(header, rows, left=(0, 1)), width=None)


def back_matching(
    blocks: Iterable[nn.Module],
    x: Tensor,
    y: Any,
    loss_fn: LossFunction,
    steps: int = 1,
    lr: float = 1e-3,
    *,
    input_steps: int = 1,
    input_lr: float = 1.0,
) -> BackMatching:
    """One round of back-matching propagation through a chain ``z_b = F_b(W_b, z_{b-1})``.

    From the last block to the first, the back-matching loss (5), ``l_B = loss_fn(F_B, y)`` and
    ``l_b = 1/2 ||z_b^{k+1/2} - F_b||^2``, is lowered twice by gradient descent: over the weights
    for (3), and over the block's input for (4), which gives the block below its target. With the
    defaults ``steps=1, input_steps=1, input_lr=1`` the new weights are those of a plain gradient
    step of size ``lr`` on the network's loss (Proposition 1).

    Nothing of the blocks is changed, not even running statistics of batch normalisation or the
    state of the random number generators; :meth:`.BackMatching.apply_` writes the new parameters.
    Every evaluation of a block sees the random numbers of its first one, so the same dropout mask,
    and these are the numbers that an ordinary forward pass would see now.

    Args:
        blocks: modules with one tensor in and one out, input to output; an ``nn.Sequential`` or
            ``nn.ModuleList`` is the list of its children.
        x: input of the first block; any dtype that it takes, so indices for an embedding.
        y: handed to ``loss_fn`` as it is.
        loss_fn: ``loss_fn(output, y)`` to a 0-dimensional tensor.
        steps: gradient steps for (3), at least 1.
        lr: their size, > 0.
        input_steps: gradient steps for (4), at least 1.
        input_lr: their size, > 0.

    Raises:
        TypeError: ``blocks`` is or holds something else than modules; ``x``, a block's output or
            the loss is not a tensor.
        ValueError: no blocks; blocks that share a parameter; a number out of range; an output that
            is not floating point; a loss that is not a scalar; NaN or infinity on the way.

    Example:
        >>> blocks = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        >>> x, y = torch.randn(8, 5), torch.randint(3, (8,))
        >>> result = back_matching(blocks, x, y, nn.functional.cross_entropy, lr=0.1)
        >>> result[0].parameters["weight"].shape
        torch.Size([4, 5])
    """
    modules = _checked_blocks(blocks)
    weight_solver = GradientDescent("steps", steps, "lr", lr)
    input_solver = GradientDescent("input_steps", input_steps, "input_lr", input_lr)
    if not isinstance(x, Tensor):
        raise TypeError(f"x is of type {type(x).__name__}; pass the first block's input, a tensor")
    # A caller under no_grad or inference_mode gets the same result.
    tensors = [x, *(p for module in modules for p in module.parameters())]
    with torch.inference_mode(False), torch.enable_grad(), KeptRandomState(tensors) as random:
        problems: list[MatchingProblem] = []
        z = x.detach().clone()
        for index, module in enumerate(modules):
            problems.append(MatchingProblem(index, module, z, random))
            z = problems[-1].output
        problems[-1].match_loss(loss_fn, y)
        found: list[BlockMatch] = []
        for problem in reversed(problems):
            match, change = problem.solve(weight_solver, input_solver)
            found.append(match)
            if change is not None:
                problems[problem.index - 1].match_change(change)
    return BackMatching(tuple(reversed(found)), modules)


def _checked_blocks(blocks: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """The blocks as a tuple, of which no two share a parameter to solve for."""
    if isinstance(blocks, nn.Module) and not isinstance(blocks, (nn.Sequential, nn.ModuleList)):
        raise TypeError(
            f"blocks is one {type(blocks).__name__}; pass the list of the network's blocks, input "
            "to output"
        )
    modules = tuple(blocks)
    if not modules:
        raise ValueError("blocks is empty; pass at least one module")
    owner: dict[int, int] = {}
    for index, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"blocks[{index}] is of type {type(module).__name__}, not a module; wrap a "
                "function in an nn.Module"
            )
        for name, parameter in module.named_parameters():
            first = owner.setdefault(id(parameter), index)
            if first != index and parameter.requires_grad:
                raise ValueError(
                    f"blocks {first} and {index} share the parameter {name!r}, for which Procedure "
                    "1 would find two new values; make one block of what shares it, or copy it"
                )
    return modules


def _share(after: float | None, before: float) -> str:
    """``after`` as a share of ``before``."""
    if after is None:
        return "-"
    return f"{after / before:.4g}" if before else f"{after:.4g} of 0"
