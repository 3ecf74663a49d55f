"""Ways to multiply a local Gauss-Newton Hessian by K vectors: ours, and those in common use.

Each contender is a function from a :class:`Problem` to a product ``(dim, K) -> (dim, K)``. What can
be shared between products (the graph, the forward pass) is built when the product is made and used
for all K vectors; nothing is computed that the result does not need.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, linearize, vjp, vmap

from bench.blocks import Case

OURS = "lhkernels"

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A block ``z = f(x)``, x the weight or the input, at ``point``.

    ``module`` is the user's block; ``bare`` a copy that keeps no running statistics and no
    gradients, so that peers need not spend time on them.
    """

    module: nn.Module
    bare: nn.Module
    inputs: Tensor
    wrt: str
    name: str
    point: Tensor

    def f(self, x: Tensor) -> Tensor:
        """The block's output."""
        if self.wrt == "input":
            return self.bare(x)
        return functional_call(self.bare, {self.name: x}, (self.inputs,))

    def as_vectors(self, columns: Tensor) -> Tensor:
        """(dim, K) to (K, *shape of the point)."""
        return columns.T.reshape(-1, *self.point.shape)


def problem(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> Problem:
    """The case's block on ``device``, ready for every contender."""
    module, inputs = case.build(device)
    module, inputs = module.to(dtype), inputs.to(dtype)
    bare = copy.deepcopy(module).requires_grad_(False)
    for layer in bare.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    name, weight = next((n, p) for n, p in bare.named_parameters() if p.ndim > 1)
    point = inputs if case.wrt == "input" else weight.detach()
    return Problem(module, bare, inputs, case.wrt, name, point)


def double_backward(p: Problem) -> Product:
    """``J v`` as the derivative of ``J^T u`` in u, then ``J^T (J v)``; both graphs are kept."""
    x = p.point.detach().clone().requires_grad_()
    z = p.f(x)
    u = torch.zeros_like(z, requires_grad=True)
    (pulled,) = torch.autograd.grad(z, x, u, create_graph=True)

    def product(columns: Tensor) -> Tensor:
        rows = columns.new_empty(columns.shape[1], columns.shape[0])
        for row, v in zip(rows, p.as_vectors(columns)):
            (jv,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
            (hv,) = torch.autograd.grad(z, x, jv, retain_graph=True)
            row.copy_(hv.flatten())
        return rows.T

    return product


def double_backward_batched(p: Problem) -> Product:
    """:func:`double_backward` for all vectors at once, by ``is_grads_batched``."""
    x = p.point.detach().clone().requires_grad_()
    z = p.f(x)
    u = torch.zeros_like(z, requires_grad=True)
    (pulled,) = torch.autograd.grad(z, x, u, create_graph=True)

    def product(columns: Tensor) -> Tensor:
        grad = partial(torch.autograd.grad, retain_graph=True, is_grads_batched=True)
        (jv,) = grad(pulled, u, p.as_vectors(columns))
        return grad(z, x, jv)[0].flatten(1).T

    return product


def jvp_vjp_loop(p: Problem) -> Product:
    """Forward mode, then the kept backward graph, vector by vector."""
    _, pull, *_ = vjp(p.f, p.point)
    return _loop(p, lambda v: pull(jvp(p.f, (p.point,), (v,))[1])[0])


def linearize_vjp_loop(p: Problem) -> Product:
    """As :func:`jvp_vjp_loop`; the forward pass is traced once and not repeated for each vector."""
    _, pull, *_ = vjp(p.f, p.point)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        _, push = linearize(p.f, p.point)
    return _loop(p, lambda v: pull(push(v))[0])


def _loop(p: Problem, multiply: Callable[[Tensor], Tensor]) -> Product:
    def product(columns: Tensor) -> Tensor:
        rows = columns.new_empty(columns.shape[1], columns.shape[0])
        for row, v in zip(rows, p.as_vectors(columns)):
            row.copy_(multiply(v).detach().flatten())
        return rows.T

    return product


def vmap_jvp_vjp(p: Problem) -> Product:
    """``vmap`` over the vectors of forward mode and the kept backward graph."""
    _, pull, *_ = vjp(p.f, p.point)
    batched = vmap(lambda v: pull(jvp(p.f, (p.point,), (v,))[1])[0])
    return lambda columns: batched(p.as_vectors(columns)).detach().flatten(1).T


class _InputAsParameter(nn.Module):
    """The block with its input as the parameter, for libraries that know parameters alone."""

    def __init__(self, block: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.block = block
        self.inputs = nn.Parameter(inputs)

    def forward(self, ignored: Tensor) -> Tensor:
        return self.block(self.inputs)


def curvlinops(p: Problem) -> Product:
    """``curvlinops.GGNLinearOperator``; the Hessian of ``MSELoss("sum")`` is 2 I, hence the half.

    Its check that the data come in the same order every time (two more products) is off. This is
    the interface of 3.0.1: 3.0.0 needs weights that require gradients, and what follows 3.0.1 takes
    the parameters as a dict.
    """
    from curvlinops import GGNLinearOperator

    model = _InputAsParameter(p.bare, p.point) if p.wrt == "input" else p.bare
    name = "inputs" if p.wrt == "input" else p.name
    weight = dict(model.named_parameters())[name]
    with torch.no_grad():
        target = torch.zeros_like(p.bare(p.inputs))
    operator = GGNLinearOperator(
        model,
        nn.MSELoss(reduction="sum"),
        [weight],
        [(p.inputs, target)],
        check_deterministic=False,
        num_data=len(p.inputs),
    )
    return lambda columns: (operator @ columns).detach().mul_(0.5)


def local_hessian(p: Problem, form: str = "auto") -> Product:
    """``LocalHessian``, made anew: whatever it computes once is part of its first product."""
    from lhkernels.hessian import LocalHessian

    hessian = LocalHessian(p.module, p.inputs, wrt=p.wrt, form=form)
    return lambda columns: hessian @ columns


Contender = Callable[[Problem], Product]
PEERS: dict[str, Contender] = {
    "double backward": double_backward,
    "double backward, batched": double_backward_batched,
    "jvp + vjp loop": jvp_vjp_loop,
    "linearize + vjp loop": linearize_vjp_loop,
    "vmap(jvp + vjp)": vmap_jvp_vjp,
    "curvlinops": curvlinops,
}
EXTRA: dict[str, Contender] = {  # timed when they are named
    "lhkernels, gram": partial(local_hessian, form="gram"),
    "lhkernels, factored": partial(local_hessian, form="factored"),
    "lhkernels, autograd": partial(local_hessian, form="autograd"),
}


def contenders() -> dict[str, Contender]:
    """By name: ours first, then the peers that are installed."""
    found: dict[str, Contender] = {OURS: local_hessian, **PEERS}
    if importlib.util.find_spec("curvlinops") is None:
        del found["curvlinops"]
    return found


def is_peer(name: str) -> bool:
    """Whether the contender is somebody else's."""
    return not name.startswith(OURS)
