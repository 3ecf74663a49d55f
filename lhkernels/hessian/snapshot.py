"""A block and its input, frozen: the function F whose curvature is asked for."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy


@contextmanager
def plain_autograd(device: torch.device) -> Iterator[None]:
    """Autograd on, whatever the caller's grad mode, inference mode or autocast region.

    Attention is evaluated by its math backend: the fused ones can't be differentiated twice.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


class KeptRandomState:
    """The global generators of torch (of the devices in use), Python and NumPy.

    On leaving the context, they are as they were on entering.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.devices = sorted({t.get_device() for t in tensors if t.is_cuda})

    def __enter__(self) -> KeptRandomState:
        self._entered = self.get()
        return self

    def __exit__(self, *_: object) -> None:
        self.set(self._entered)

    def get(self) -> tuple[Any, ...]:
        numpy = sys.modules.get("numpy")  # of which a block can't draw before it is imported
        return (
            torch.get_rng_state(),
            [torch.cuda.get_rng_state(device) for device in self.devices],
            random.getstate(),
            None if numpy is None else numpy.random.get_state(),
        )

    def set(self, state: tuple[Any, ...]) -> None:
        of_torch, of_cuda, of_python, of_numpy = state
        torch.set_rng_state(of_torch)
        for device, one in zip(self.devices, of_cuda):
            torch.cuda.set_rng_state(one, device)
        random.setstate(of_python)
        if of_numpy is not None:
            sys.modules["numpy"].random.set_state(of_numpy)


class Snapshot:
    """A copy of a block and of its recorded input.

    Later changes of the block don't reach the copy, and nothing of the block is ever written:
    parameters, gradients, buffers, mode. Every evaluation sees the same parameters, buffers and
    random numbers (so the same dropout mask) of the global generators of torch, Python and NumPy,
    and leaves these as they were. It can't know of a generator or a count that the block keeps for
    itself, nor undo what ``forward()`` writes to a parameter: see :meth:`check_repeats`.
    The block's forward hooks are part of F and run; its backward hooks are not.

    Args:
        module: the block.
        inputs: a tensor, or a tuple of tensors for ``module(*inputs)``.

    Attributes:
        module: the copy. Its train-mode batch norms have no running statistics, and none of its
            parameters requires a gradient.
        inputs: tuple of detached copies.
        parameters: name -> detached tensor, every parameter once, in ``named_parameters()`` order.
        device: of the inputs and of all parameters.

    Raises:
        TypeError: ``module`` is no ``nn.Module``; an input is no tensor.
        ValueError: no inputs, an empty or non-finite one; a non-finite, complex or uninitialised
            parameter; tensors on several devices; a block that can't be copied.
    """

    def __init__(self, module: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
        given = _as_tuple(inputs)
        module = getattr(module, "_orig_mod", module)  # a compiled block: no double backward
        self.device = given[0].device
        _check_devices(module, given)
        _check_parameters(module)
        for i, x in enumerate(given):
            _check_input(x, f"inputs[{i}]" if len(given) > 1 else "inputs")
        self._random = KeptRandomState(given)
        self._random_state = self._random.get()
        with torch.inference_mode(False), torch.no_grad():
            # Copies, so that what later happens to the caller's tensors in place is not seen.
            self.inputs = tuple(x.detach().clone() for x in given)
            self.module = _copy(module)
            self.parameters = {n: p.detach() for n, p in self.module.named_parameters()}
        self._output: Tensor | None = None

    @property
    def output(self) -> Tensor:
        """F at the recorded parameters and input, detached; evaluated once."""
        if self._output is None:
            self._output = self().detach()
        return self._output

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Names of the parameters with two dimensions or more, in ``named_parameters()`` order."""
        return tuple(n for n, p in self.parameters.items() if p.ndim >= 2)

    def points(self, wrt: str) -> dict[str, Tensor]:
        """What F is differentiated by, as messages call it: the weights, or the inputs."""
        if wrt == "weight":
            return {f"parameter {n!r}": self.parameters[n] for n in self.weight_names}
        return {f"inputs[{i}]": x for i, x in enumerate(self.inputs)}

    def __call__(
        self,
        parameters: Mapping[str, Tensor] | None = None,
        inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """F with other parameters or inputs in place of the recorded ones.

        Args:
            parameters: name -> tensor; names left out keep their recorded value.
            inputs: as for the constructor; None for the recorded ones.

        Returns:
            The block's output, attached to the graph of what was given.

        Raises:
            TypeError: the output is not one real floating-point tensor.
            ValueError: the block has no parameter of such a name.
        """
        unknown = [name for name in parameters or {} if name not in self.parameters]
        if unknown:
            names = ", ".join(map(repr, self.parameters)) or "none"
            raise ValueError(f"the block has no parameter {unknown[0]!r}; it has {names}")
        chosen = self.inputs if inputs is None else _as_tuple(inputs)
        # Modules that work in place on their input or their buffers get copies to work on.
        arguments = tuple(x.clone() for x in chosen)
        state = {n: b.clone() for n, b in self.module.named_buffers()}
        state.update(self.parameters)
        state.update(parameters or {})
        with plain_autograd(self.device), self._random:
            self._random.set(self._random_state)
            output = torch.func.functional_call(self.module, state, arguments)
        return _check_output(output)

    def check_repeats(self, output: Tensor) -> None:
        """Raise ValueError if a further evaluation's ``output`` is not :attr:`output` again.

        That is, by more than ``sqrt(eps) * largest``: sums may be taken in another order.
        """
        first = self.output
        tolerance = torch.finfo(first.dtype).eps ** 0.5 * float(first.abs().max())
        if not torch.allclose(output, first, rtol=0.0, atol=tolerance, equal_nan=True):
            raise ValueError(
                f"{type(self.module).__name__} gave another output when it was evaluated again: "
                "its forward() must not draw from a generator of its own, depend on earlier calls "
                "or write to its parameters"
            )


def _as_tuple(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    given = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not isinstance(given, (tuple, list)):
        raise TypeError(
            f"inputs must be a tensor or a tuple of tensors, got {type(inputs).__name__}"
        )
    if not given:
        raise ValueError("inputs is empty: give at least one tensor")
    for i, x in enumerate(given):
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs[{i}] must be a tensor, got {type(x).__name__}")
    return tuple(given)


def _check_input(x: Tensor, name: str) -> None:
    if x.numel() == 0:
        raise ValueError(f"{name} has no elements (shape {tuple(x.shape)}): record a real batch")
    if x.is_complex():
        raise ValueError(f"{name} is complex ({x.dtype}): only real blocks have a local Hessian")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} has NaN or infinite values: record an input that is finite")


def _check_parameters(module: nn.Module) -> None:
    for name, p in module.named_parameters():
        if is_lazy(p):
            raise ValueError(f"parameter {name!r} is not initialised: call the block once first")
        if p.is_complex():
            raise ValueError(f"parameter {name!r} is complex: only real blocks are supported")
        if not bool(torch.isfinite(p.detach()).all()):
            raise ValueError(f"parameter {name!r} has NaN or infinite values")


def _check_devices(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    device = inputs[0].device
    tensors = [(f"inputs[{i}]", x) for i, x in enumerate(inputs)]
    tensors += [(f"parameter {n!r}", p) for n, p in module.named_parameters()]
    for name, t in tensors:
        if t.device != device:
            raise ValueError(
                f"{name} is on {t.device}, inputs[0] on {device}: move the block and its "
                "inputs to one device"
            )


def _copy(module: nn.Module) -> nn.Module:
    # Tensors that a forward pass left behind are attached to its graph; deepcopy refuses those.
    attributes = (value for part in module.modules() for value in vars(part).values())
    left_behind = [t for t in attributes if isinstance(t, Tensor) and not t.is_leaf]
    try:
        copied = copy.deepcopy(module, {id(t): t.detach().clone() for t in left_behind})
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} can't be copied by copy.deepcopy ({error}): a block must "
            "not hold tensors that are attached to a graph, open files or the like"
        ) from error
    for part in copied.modules():
        if isinstance(part, _NormBase) and part.training:
            # Batch statistics are used in train mode; without running ones none are written.
            part.running_mean = part.running_var = part.num_batches_tracked = None
        part._backward_hooks.clear()
        part._backward_pre_hooks.clear()
    for p in copied.parameters():
        p.grad = None
        p.requires_grad_(False)
    return copied


def _check_output(output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the block returned a {type(output).__name__}, not a tensor: wrap it in a module "
            "that returns the one tensor whose curvature is wanted"
        )
    if not output.is_floating_point():
        raise TypeError(
            f"the block's output must be a real floating-point tensor, got {output.dtype}"
        )
    return output
