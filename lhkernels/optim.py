"""The optimizer: state, groups and checkpoints; the arithmetic is lhkernels.step's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lhkernels.binding import (
    blocks_of,
    check_parameters,
    named_parameters,
    unshared,
    warn_of_shares,
)
from lhkernels.hyperparameters import OWN_OPTIONS, check_group, complete_group
from lhkernels.plan import Block, Plan, chain_output_units
from lhkernels.step import StepSets, Work, block_scales, geometric_mean_of_scales


class ScaleAmendedSGD(Optimizer):
    r"""Scale-amended SGD (Zhang, Chen, Liu, NeurIPS 2018, Algorithm 2): a drop-in for torch's SGD.

    Each block's gradient is multiplied by ``s_b = 1 / (m_b m_{b,W})``, made from the squared row
    norms of the weights, so that all blocks learn at a balanced pace::

        d   = s_b * (gradient + weight_decay * W)         (22), weight decay first
        buf = momentum * buf + (1 - dampening) * d        momentum last
        W   = W - lr * buf                                (nesterov: d + momentum * buf)

    In the default plan, a chain, ``s_b = ||W_b||_F^2 / n_L`` with ``n_L`` the output units of the
    last block given at construction (parameters added later are lower blocks of the same chain).
    An optimizer that has not all of the network, such as one per parameter or a shard
    (ZeroRedundancyOptimizer), or has it in another order, such as [head, backbone], mistakes the
    last block: pass ``plan=Plan.chain(model.named_parameters())`` then.

    Args:
        params: parameters, named parameters or parameter groups, as in torch.optim.
        lr: learning rate >= 0, a float or a 1-element tensor.
        momentum: >= 0; like dampening, a float or a 1-element tensor, which the host reads.
        dampening: the new gradient's weight in the buffer is 1 - dampening.
        weight_decay: L2 penalty >= 0, added to the gradient before it is amended.
        nesterov: Nesterov momentum; needs momentum > 0 and dampening = 0.
        amend: False is plain SGD for the group, the same numbers as torch.optim.SGD (with
            ``fused=True`` bfloat16, float16 and complex dtypes are rounded once a step: as torch's
            fused step does from torch 2.14 on, which takes no complex dtypes).
        plan: a :class:`lhkernels.Plan`; None for a chain of all parameters. It may name others
            too; parameters that it does not name are plain SGD's.
        scale_reference: "output", the paper's m = 1 at the network's output; or "initial", every
            block's scale divided by the element-weighted geometric mean of the blocks' scales at
            the first step that moves one, so that a learning rate tuned for SGD is of the right
            order here (a constant, to ``differentiable`` steps too).
        maximize: ascend.
        foreach, fused, differentiable: torch.optim's flags; with none set the fastest that exists.
        capturable: the step may be captured in a CUDA graph (take a first step before capturing).
        momentum_dtype: dtype of the momentum buffers; None for each parameter's own.
        stochastic_rounding: round bfloat16 and float16 parameters stochastically.

    Raises:
        ValueError, RuntimeError: naming the option, its value and the remedy.

    A weight whose norm is 0 would have ``s_b = 0`` and never move, and one with a NaN would spread
    it; both are refused when a parameter takes its first step with lr > 0, before anything is
    changed (on a GPU that check is the step's only synchronisation). Later steps do not look.

    State is torch's: ``momentum_buffer`` per parameter, so checkpoints load from and into
    torch.optim.SGD. A step never writes ``p.grad``. With ``fused=True`` it also does what is
    GradScaler's otherwise: it divides by the scale, and skips overflows.

    Example:
        >>> import torch, lhkernels as lh
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(64, 32, bias=False), torch.nn.BatchNorm1d(32), torch.nn.ReLU(),
        ...     torch.nn.Linear(32, 10, bias=False),
        ... )
        >>> opt = lh.ScaleAmendedSGD(model.named_parameters(), lr=0.01, momentum=0.9)
        >>> images, labels = torch.randn(16, 64), torch.randint(10, (16,))
        >>> torch.nn.functional.cross_entropy(model(images), labels).backward()
        >>> opt.step()
        >>> list(opt.block_scales())
        ['0.weight', '1.weight', '1.bias', '3.weight']
        >>> norm = model[0].weight.detach().norm()
        >>> torch.allclose(opt.block_scales()["0.weight"], norm**2 / 10)
        True
    """

    _block_of: dict[Tensor, Block]
    _sets: StepSets

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        amend: bool = True,
        plan: Plan | None = None,
        scale_reference: str = "output",
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        momentum_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
    ) -> None:
        if plan is not None and not isinstance(plan, Plan):
            raise TypeError(f"plan={plan!r} is not a Plan; build one, such as with Plan.chain(...)")
        self._plan = plan
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach, "fused": fused,
            "differentiable": differentiable, "capturable": capturable, "amend": amend,
            "scale_reference": scale_reference, "momentum_dtype": momentum_dtype,
            "stochastic_rounding": stochastic_rounding,
        }  # fmt: skip
        check_group(defaults)
        super().__init__(params, defaults)
        if plan is None:
            units = chain_output_units(p.shape for _, p in named_parameters(self.param_groups))
            for group in self.param_groups:
                group["output_units"] = units
        # torch's protocol with GradScaler, which else unscales the gradients itself
        self._step_supports_amp_scaling = bool(fused)
        self._begin()

    # ---------------------------------------------------------------------------------- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, such as layers that are unfrozen; its options are checked first."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group).__name__}")
        merged = {**self.defaults, **param_group}
        check_group(merged)
        first = self.param_groups[0] if self.param_groups else merged
        if merged["scale_reference"] != first["scale_reference"]:
            raise ValueError(
                f"scale_reference={merged['scale_reference']!r} differs from another group's "
                f"{first['scale_reference']!r}; all blocks share one reference: set it for the "
                "whole optimizer"
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for key in ("output_units", "scale_constant"):
            group.setdefault(key, first.get(key))
        group.setdefault("rounding_step", None)
        try:
            check_parameters(self.param_groups)
            if hasattr(self, "_sets"):  # after construction
                self._begin()
        except ValueError:
            self.param_groups.pop()
            raise

    def _begin(self) -> None:
        """Derive from the groups what steps use."""
        self._sets = StepSets(carries=not hasattr(self, "_sets") or self._sets.carries)
        self._find_blocks()

    def _find_blocks(self) -> None:
        blocks = blocks_of(self.param_groups, self._plan, warn=True)
        self._block_of = {p: b for (_, p), b in zip(named_parameters(self.param_groups), blocks)}

    @property
    def plan(self) -> Plan:
        """Every parameter's block, in the order of the groups; ``print(opt.plan)`` shows it."""
        units = self.param_groups[0]["output_units"]
        title = f"chain, n_L = {units}" if units else "chain without blocks, so plain SGD"
        title = title if self._plan is None else self._plan.title
        return Plan(tuple(blocks_of(self.param_groups, self._plan)), title=title)

    @torch.no_grad()
    def block_scales(self) -> dict[str | int, Tensor]:
        """``s_b`` for the weights as they are now: {parameter's name or position: 0-dim tensor}.

        1 where the gradient is not amended. The host does not wait for the device. Where parameters
        are cut over ranks (DTensor), all ranks have to call this together. With
        scale_reference="initial", the constant is the one that the first step has found; before
        that, the one that it will find if every block then has a gradient.

        Returns:
            0-dim tensors on the parameters' devices, float32 or better.
        """
        amended = [group["amend"] for group in self.param_groups for _ in group["params"]]
        blocks = blocks_of(self.param_groups, self._plan)
        first = self.param_groups[0]
        scales = block_scales(
            [param for _, param in named_parameters(self.param_groups)],
            [block if amend else None for block, amend in zip(blocks, amended)],
            constant=first["scale_constant"],
            find_constant=first["scale_reference"] == "initial",
        )
        return {block.parameter: scale for block, scale in zip(blocks, scales)}

    # ------------------------------------------------------------------------------------ step

    # As torch.compiler.disable, which would import the compiler with this module: there is nothing
    # to compile in what a step looks at, nor in its one kernel.
    @torch._disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: a bad hyperparameter, or a weight of norm 0, NaN or infinity that takes its
                first step; nothing has been changed then.
            RuntimeError: a gradient that is not dense, or a gradient or buffer that does not fit
                its parameter; nothing has been changed either.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._seed_roundings()
            work = self._sets.collect(self.param_groups, self.state, self._block)
            found_inf = getattr(self, "found_inf", None)
            fresh = self._sets.fresh(work)
            first = fresh or any(w.makes_buffers for w in work)
            if found_inf is not None and first and found_inf.item() != 0:
                return loss  # a first step that overflows makes nothing: no buffers either
            self._sets.sum_norms(work)
            if fresh:
                warn_of_shares(self.param_groups, self._plan)
                self._sets.admit(fresh)
                self._fix_scale_constant(work)
            # Each by one kernel, or by lhkernels.reference.update, a parameter at a time:
            #   d = s_b (g + weight_decay W),  buf = momentum buf + (1 - dampening) d,  W -= lr buf
            for w in work:
                w.run(self.state, getattr(self, "grad_scale", None), found_inf)
            self._count_roundings(found_inf)
        self._sets.end(work)
        return loss

    def _block(self, param: Tensor) -> Block:
        block = self._block_of.get(param)
        if block is None or block.shape != param.shape:  # somebody has edited the groups, or data
            self._find_blocks()
        if param not in self._block_of:
            raise ValueError(
                f"a parameter of shape {tuple(param.shape)} is in group['params'] without a name "
                "in group['param_names']; add it with add_param_group"
            )
        return self._block_of[param]

    def _seed_roundings(self) -> None:
        for group in self.param_groups:
            if group["stochastic_rounding"] and group["params"] and group["rounding_step"] is None:
                device = group["params"][0].device
                group["rounding_step"] = torch.zeros((), dtype=torch.int64, device=device)

    def _count_roundings(self, found_inf: Tensor | None) -> None:
        """The seeds of stochastic rounding: a count of steps, the same on every rank."""
        for group in self.param_groups:
            count = group["rounding_step"]
            if group["stochastic_rounding"] and count is not None:
                count += 1 if found_inf is None else (found_inf == 0).to(count.device).reshape(())

    def invalidate_norms(self) -> None:
        """Recompute every norm at the next step.

        A fused step leaves the norms of the weights it wrote for the next step, and notices writes
        in between by the tensors' version counters, storages and addresses. Call this after writes
        that change none of these: through ``p.data.mul_(...)``, a NumPy view, or a kernel of one's
        own. A step that finds such a write itself, in what it reads, warns, and from then on norms
        are computed anew for every step, until this is called (docs/step.md, section 3).
        """
        self._sets.invalidate_norms()

    def _fix_scale_constant(self, work: Sequence[Work]) -> None:
        """Keep the constant of scale_reference="initial", found at the first step that moves."""
        first = self.param_groups[0]
        constant = first["scale_constant"]
        if first["scale_reference"] == "initial" and constant is None:
            constant = geometric_mean_of_scales(work)
            if constant is not None and any(w.set.admitted for w in work):
                for group in self.param_groups:
                    group["scale_constant"] = constant
                for w in work:
                    w.set.divide_scales(constant)
        for w in work:  # which do not move use it for this step alone
            w.scale_constant = constant

    # ----------------------------------------------------------------------------- checkpoints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of torch.optim.SGD.

        Options that torch.optim.SGD does not have stay as they are then. Momentum buffers come
        back in ``momentum_dtype``. Named parameters keep their names, by which a plan knows them.

        Raises:
            ValueError, RuntimeError: an option that no step could use; nothing has been loaded.
        """
        loaded: dict[str, Any] = {}

        def complete(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            loaded.update(saved)
            mine, theirs = self.param_groups, saved["param_groups"]
            groups = [complete_group(own, group) for own, group in zip(mine, theirs)]
            return {**saved, "param_groups": groups + theirs[len(mine) :]}

        # The last hook before and the first after: other hooks see and change what is loaded.
        hooks = [
            self.register_load_state_dict_pre_hook(complete),
            self.register_load_state_dict_post_hook(
                lambda _: self._restore_buffers(loaded), prepend=True
            ),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _restore_buffers(self, loaded: dict[str, Any]) -> None:
        """torch has rounded them to the parameters' dtypes: take them in ``momentum_dtype``."""
        for group, saved in zip(self.param_groups, loaded["param_groups"]):
            dtype = group["momentum_dtype"]
            for param, key in zip(group["params"], saved["params"]) if dtype else ():
                buffer = loaded["state"].get(key, {}).get("momentum_buffer")
                if buffer is not None:
                    self.state[param]["momentum_buffer"] = buffer.to(
                        device=param.device, dtype=dtype, copy=True
                    )

    def __getstate__(self) -> dict[str, Any]:
        plan = None if self._plan is None else unshared(self._plan, self.param_groups)
        return {**super().__getstate__(), "_plan": plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._step_supports_amp_scaling = bool(self.defaults["fused"])
        for group in self.param_groups:
            if "reference_scale" in group:  # its name in checkpoints of before
                group["scale_constant"] = group.pop("reference_scale")
            for key, value in OWN_OPTIONS.items():
                group.setdefault(key, value)
        self._begin()
