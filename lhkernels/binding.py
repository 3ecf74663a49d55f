"""Which of an optimizer's parameters is which block of a plan (docs/algorithm.md, section 8)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from lhkernels.plan import Block, Named, Plan, chain_block, known_as

Groups: TypeAlias = Sequence[Mapping[str, Any]]


def named_parameters(groups: Groups) -> list[Named]:
    """All parameters in the order of the groups, with their names, or else positions."""
    named: list[Named] = []
    for group in groups:
        names = group.get("param_names") or range(len(named), len(named) + len(group["params"]))
        named += zip(names, group["params"])
    return named


def blocks_of(groups: Groups, plan: Plan | None, warn: bool = False) -> list[Block]:
    """A block per parameter, in the order of the groups.

    Args:
        groups: parameter groups of the optimizer.
        plan: None for a chain, whose ``n_L`` the groups have.
        warn: of amended weights that the plan leaves out; vectors are often left out on purpose.
    """
    named = named_parameters(groups)
    group_of = [group for group in groups for _ in group["params"]]
    if plan is None:
        units = [group["output_units"] for group in group_of]
        return [chain_block(name, tuple(p.shape), n) for (name, p), n in zip(named, units)]
    blocks, left_out = bind(plan, named)
    plain = [repr(named[i][0]) for i in left_out if group_of[i]["amend"] and named[i][1].dim() > 1]
    if warn and plain:
        warnings.warn(
            f"plan does not name {', '.join(plain)}, so plain SGD steps what it could amend; if "
            "that is meant, give it a Block of kind='plain' or a group with amend=False",
            stacklevel=5,
        )
    return blocks


def bind(plan: Plan, named: Sequence[Named]) -> tuple[list[Block], list[int]]:
    """The plan's block for every parameter, and the positions of those that it leaves out: plain.

    The very tensors that the plan was made from are found under any name and in any place. Others
    are found by name; by position only where none of the plan's own tensors is among them, whose
    positions would be those in the network, not in this optimizer. Blocks are called as the
    optimizer calls its parameters, and where it has no names, by those of the plan.

    Raises:
        ValueError: the plan names none of the parameters, one of them twice, or one with another
            shape.
    """
    by_key = {block.parameter: block for block in plan.blocks}
    own = [plan.block_of.get(param) for _, param in named]
    by_position = not any(own)
    blocks: list[Block] = []
    left_out: list[int] = []
    for position, ((name, param), block) in enumerate(zip(named, own)):
        keys: set[str | int] = {name} if isinstance(name, str) else set()
        if by_position:
            keys.add(position)
        found = [block] if block else [by_key[key] for key in keys if key in by_key]
        if len(found) > 1:
            raise ValueError(
                f"plan names one parameter twice, as {name!r} and {position}; keep one Block for it"
            )
        shape = tuple(param.shape)
        if not found:
            left_out.append(position)
            blocks.append(Block(name, shape, "plain"))
            continue
        if shape != found[0].shape:
            raise ValueError(
                f"plan gives parameter {found[0].parameter!r} the shape {found[0].shape}, but it "
                f"has {shape}; build the plan from this model"
            )
        planned = found[0].parameter
        unnamed = isinstance(name, int) and isinstance(planned, str)
        blocks.append(replace(found[0], parameter=planned if unnamed else name))
    if plan.blocks and len(left_out) == len(blocks) > 0:
        raise ValueError(
            f"plan names parameter {plan.blocks[0].parameter!r}, which the optimizer does not "
            f"have, nor any other of its {len(plan)}; " + known_as(named)
        )
    return blocks, left_out


def unshared(plan: Plan, groups: Groups) -> Plan:
    """The plan for copies of these parameters, which only names and positions can tell.

    Blocks of parameters that the optimizer does not have (yet) are kept where they have a name that
    none of its own has.
    """
    named = named_parameters(groups)
    blocks = [
        replace(block, parameter=name) for (name, _), block in zip(named, bind(plan, named)[0])
    ]
    taken = {block.parameter for block in blocks} | {b.parameter for b in blocks_of(groups, plan)}
    rest = [b for b in plan.blocks if isinstance(b.parameter, str) and b.parameter not in taken]
    return Plan((*blocks, *rest), title=plan.title)


def check_parameters(groups: Groups) -> None:
    """Raise a ValueError where two have one name, or one has lost its rows."""
    seen: set[str | int] = set()
    for name, _ in named_parameters(groups):
        if name in seen:
            raise ValueError(
                f"two parameters are named {name!r}; tell them apart, such as with "
                "module.named_parameters(prefix=...)"
            )
        seen.add(name)
    for name, param in named_parameters([group for group in groups if group["amend"]]):
        if getattr(param, "_fsdp_flattened", False):
            raise ValueError(
                f"parameter {name!r} is FullyShardedDataParallel's, flattened to 1 dimension and "
                "cut (with use_orig_params=True too), so that it has no rows; use "
                "torch.distributed.fsdp.fully_shard (FSDP2), or amend=False"
            )


def warn_of_shares(groups: Groups, plan: Plan | None) -> None:
    """Warn where an optimizer takes from its own parameters what is the network's."""
    params = [param for _, param in named_parameters(groups)]
    if plan is None and len(params) == 1 and params[0]._post_accumulate_grad_hooks:
        warnings.warn(
            "an optimizer per parameter takes n_L, the units of the network's output, from its own "
            "parameter; pass plan=Plan.chain(model.named_parameters()) to each",
            stacklevel=4,
        )
    if plan is not None and groups[0]["scale_reference"] == "initial":
        mine = set(map(id, params))
        others = [
            block.parameter
            for param, block in plan.block_of.items()
            if block.uses_norm and param.requires_grad and id(param) not in mine
        ]
        if others and any(param in plan.block_of for param in params):
            warnings.warn(
                "scale_reference='initial' takes its constant from the optimizer's own parameters, "
                f"but the plan has others that train, such as {others[0]!r}, for which another "
                "optimizer finds another constant; pass scale_reference='output' to all of them",
                stacklevel=4,
            )
