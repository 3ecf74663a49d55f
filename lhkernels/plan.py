"""Which parameter is which block, and the scale that its gradient gets (docs/algorithm.md)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lhkernels.tables import table, to_text

Named: TypeAlias = tuple[str | int, Tensor]
Kind = Literal["weight", "vector", "plain"]
KINDS: tuple[Kind, ...] = ("weight", "vector", "plain")


@dataclass(frozen=True, slots=True)
class Block:
    """One parameter's place in the network, and with it the rule for its scale ``s``.

    ==========  ==========================================  ==============================
    ``kind``    what                                        ``s``
    ==========  ==========================================  ==============================
    weight      rows are output units, (n_out, n_in, ...)   ``||W||_F^2 / (units * m)``
    vector      a bias, a normalisation's scale or shift    ``1 / m``
    plain       belongs to no block (embedding, scalar)     1, plain SGD
    ==========  ==========================================  ==============================

    Attributes:
        parameter: its name, or its position in the optimizer.
        shape: the parameter's shape.
        kind: see above.
        units: output units ``n_b`` of the block.
        m: the backward factor at the block's output, times its output positions (which cancel
            against those in ``m_W``): ``n_L / n_b`` in a chain.

    Raises:
        ValueError: an unknown ``kind``, or ``m`` or ``units`` out of range.

    Example:
        >>> from lhkernels import Block
        >>> block = Block("features.0.weight", (16, 3, 3, 3), units=16, m=10 / 16)
        >>> block.coefficient  # s = 0.1 ||W||_F^2
        0.1
        >>> Block("features.0.bias", (16,), "vector", units=16, m=10 / 16).coefficient
        1.6
    """

    parameter: str | int
    shape: tuple[int, ...]
    kind: Kind = "weight"
    units: int = 1
    m: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.kind not in KINDS:
            raise ValueError(
                f"Block {self.parameter!r}: kind={self.kind!r} is unknown; pass one of {KINDS}"
            )
        if not (isinstance(self.m, Real) and math.isfinite(self.m) and self.m > 0):
            raise ValueError(
                f"Block {self.parameter!r}: m={self.m!r} is not a finite number > 0; the backward "
                "factor of a chain is output_units / units"
            )
        if not (isinstance(self.units, Integral) and self.units >= 1):
            raise ValueError(
                f"Block {self.parameter!r}: units={self.units!r} is not a whole number >= 1; pass "
                "its output units"
            )

    @property
    def coefficient(self) -> float:
        """``s`` is this, times ``||W||_F^2`` where :attr:`uses_norm`."""
        if self.kind == "weight":
            return 1.0 / (self.units * self.m)
        return 1.0 / self.m if self.kind == "vector" else 1.0

    @property
    def uses_norm(self) -> bool:
        """Whether ``s`` depends on the parameter's own norm."""
        return self.kind == "weight"


@dataclass(frozen=True)
class Plan:
    """The blocks of a network, input to output; parameters that it does not name are plain SGD's.

    ``print(plan)`` is a table with a row per parameter. Build one with :meth:`chain`, or from
    :class:`Block` objects of your own. It may name parameters that an optimizer does not have
    (yet): one plan of the whole network serves all optimizers that share its parameters.

    Attributes:
        blocks: a :class:`Block` per parameter.
        title: the table's.
        block_of: the tensors that :meth:`chain` was given, while they live, and their blocks; an
            optimizer finds them under any name and in any place. Copies go by names and positions.

    Raises:
        TypeError: something among ``blocks`` is not a :class:`Block`.
        ValueError: two blocks name one parameter.

    Example:
        >>> import torch, lhkernels as lh
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> print(lh.Plan.chain(model.named_parameters()))
        chain, n_L = 2: 2 blocks, 4 parameters
           parameter  shape  kind    units  m    s
        ────────────────────────────────────────────────────
        0  0.weight   4x8    weight  4      0.5  0.5 ||W||^2
        1  0.bias     4      vector  4      0.5  2
        2  1.weight   2x4    weight  2      1    0.5 ||W||^2
        3  1.bias     2      vector  2      1    1
    """

    blocks: tuple[Block, ...]
    title: str = "plan"
    block_of: WeakIdKeyDictionary = field(
        default_factory=WeakIdKeyDictionary, init=False, repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, Any]:
        return {"blocks": self.blocks, "title": self.title}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        seen: set[str | int] = set()
        for block in self.blocks:
            if not isinstance(block, Block):
                raise TypeError(f"a plan is made of Block objects, but one of them is {block!r}")
            if block.parameter in seen:
                raise ValueError(
                    f"plan names parameter {block.parameter!r} twice; keep one Block for it"
                )
            seen.add(block.parameter)

    @classmethod
    def chain(
        cls,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        *,
        output_units: int | None = None,
        plain: Collection[str | int] = (),
    ) -> Plan:
        """A feed-forward chain: the paper's case, and the optimizer's default.

        Every parameter with 2 or more dimensions is a block of its own, with ``shape[0]`` output
        units; 1-dimensional ones are vectors; 0-dimensional and empty ones are plain. Then
        ``s = ||W||_F^2 / n_L`` for blocks and ``numel / n_L`` for vectors (docs/algorithm.md).

        Args:
            params: parameters, or (name, parameter) pairs such as ``model.named_parameters()``.
            output_units: ``n_L``, units of the network's output; default: those of the last block.
            plain: names or positions to leave to plain SGD, such as embeddings.

        Raises:
            ValueError: ``plain`` names what is not there; ``output_units`` < 1.
        """
        if isinstance(params, nn.Module):
            raise TypeError("params is a module; pass its named_parameters()")
        plain = [plain] if isinstance(plain, (str, int)) else plain
        named = [
            item if isinstance(item, tuple) else (position, item)
            for position, item in enumerate(params)
        ]
        unknown = [name for name in plain if name not in {key for key, _ in named}]
        if unknown:
            raise ValueError(f"plain={unknown[0]!r} is not among the parameters; {known_as(named)}")
        shapes = {key: tuple(tensor.shape) for key, tensor in named if key not in plain}
        if output_units is None:
            output_units = chain_output_units(shapes.values())
        if output_units is not None and not (
            isinstance(output_units, Integral) and output_units >= 1
        ):
            raise ValueError(
                f"output_units={output_units!r} is not a whole number >= 1; pass the units of the "
                "network's output"
            )
        blocks = [
            chain_block(key, tuple(tensor.shape), None if key in plain else output_units)
            for key, tensor in named
        ]
        plan = cls(tuple(blocks), title=f"chain, n_L = {output_units}")
        plan.block_of.update({tensor: block for (_, tensor), block in zip(named, blocks)})
        return plan

    def __len__(self) -> int:
        return len(self.blocks)

    def __str__(self) -> str:
        count = sum(block.uses_norm for block in self.blocks)
        plain = sum(block.kind == "plain" for block in self.blocks)
        title = f"{self.title}: {count} blocks, {len(self)} parameters"
        title += f", {plain} of them plain SGD" if plain else ""
        columns = ("", "parameter", "shape", "kind", "units", "m", "s")
        rows = [
            (i, b.parameter, "x".join(map(str, b.shape)) or "scalar", *_row(b))
            for i, b in enumerate(self.blocks)
        ]
        return to_text(title, table(columns, rows, left=range(len(columns))), width=None)


def chain_output_units(shapes: Iterable[Sequence[int]]) -> int | None:
    """``n_L``: the rows of the last block, or None if nothing has 2 dimensions."""
    units = [shape[0] for shape in shapes if len(shape) >= 2 and 0 not in shape]
    return units[-1] if units else None


def chain_block(parameter: str | int, shape: tuple[int, ...], output_units: int | None) -> Block:
    """One parameter of a chain with ``output_units`` = n_L; None leaves it to plain SGD."""
    if output_units is None or not shape or 0 in shape:
        return Block(parameter, shape, "plain")
    kind: Kind = "weight" if len(shape) >= 2 else "vector"
    return Block(parameter, shape, kind, units=shape[0], m=output_units / shape[0])


def known_as(named: Sequence[Named]) -> str:
    """How parameters can be called, for errors."""
    names = [repr(name) for name, _ in named]
    if names and not any(isinstance(name, str) for name, _ in named):
        return (
            f"it knows them as positions 0 to {len(names) - 1}: pass model.named_parameters() to "
            "go by name"
        )
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"the parameters are {shown or 'none'}"


def _row(block: Block) -> tuple[str, str, str, str]:
    """kind, units, m and the rule for s, as a reader wants them."""
    if block.kind == "plain":
        return block.kind, "", "", "1"
    s = f"{block.coefficient:.4g}"
    return block.kind, str(block.units), f"{block.m:.4g}", f"{s} ||W||^2" if block.uses_norm else s
