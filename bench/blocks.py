"""Blocks, and ways to multiply their Gauss-Newton Hessian by K vectors: ours and those in use.

A contender makes of a :class:`Problem` a product ``(dim, K) -> (dim, K)``. What products can share
(the graph, the forward pass) is built once; nothing is computed that the result does not need.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, func, nn

from bench.common import CPU, OURS
from lhkernels.hessian import LocalHessian

Product = Callable[[Tensor], Tensor]
SPATIAL = {"linear": 0, "conv1d": 1, "conv2d": 2}


@dataclass(frozen=True)
class Case:
    """A block; ``size`` is its input's side, which convolutions keep, and 0 for linear layers."""

    kind: str
    n_in: int
    n_out: int
    batch: int
    size: int
    columns: int
    batch_norm: bool = True
    wrt: str = "weight"

    @property
    def title(self) -> str:
        """Such as ``conv2d 64->64 + BN at 16x16, N 64, K 16``."""
        layer = f"{self.kind} {self.n_in}->{self.n_out}" + " + BN" * self.batch_norm
        at = " at " * (self.size > 0) + "x".join(SPATIAL[self.kind] * [str(self.size)])
        wrt = ", wrt input" * (self.wrt == "input")
        return f"{layer}{at}, N {self.batch}, K {self.columns}{wrt}"


CASES = {
    "conv64": Case("conv2d", 64, 64, 64, 16, 16),
    "conv256": Case("conv2d", 256, 256, 64, 8, 16),
    "conv512": Case("conv2d", 512, 512, 128, 4, 8),
    "linear1024": Case("linear", 1024, 1024, 4096, 0, 32, batch_norm=False),
    "conv1d": Case("conv1d", 128, 128, 64, 64, 16),
    "conv64-input": Case("conv2d", 64, 64, 64, 16, 8, wrt="input"),
    "linear512-input": Case("linear", 512, 512, 2048, 0, 8, wrt="input"),
}


class Problem:
    """A block ``z = f(x)``, x the weight or the input, at ``point``, and the vectors.

    ``module`` is the user's block, in train mode; peers need not spend time on running statistics
    and gradients, which ``bare`` does not keep. ``columns`` (dim, K) are column-major, which suits
    all best. All numbers are float32's, the same on every device and in every dtype.
    """

    def __init__(self, case: Case, device: torch.device = CPU, dtype: torch.dtype = torch.float32):
        nd, self.wrt = SPATIAL[case.kind], case.wrt
        taps = {"kernel_size": 3, "padding": 1} if nd else {}
        layer = (nn.Linear, nn.Conv1d, nn.Conv2d)[nd](case.n_in, case.n_out, bias=False, **taps)
        norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[nd](case.n_out)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            layer.weight.normal_(std=(case.n_in * 3**nd) ** -0.5, generator=generator)
        inputs = torch.randn(case.batch, case.n_in, *(nd * [case.size]), generator=generator)
        self.module = nn.Sequential(*[layer, norm][: 1 + case.batch_norm]).to(device, dtype)
        self.inputs = inputs.to(device, dtype)
        self.bare = func.replace_all_batch_norm_modules_(copy.deepcopy(self.module))
        self.bare.requires_grad_(False)
        self.point = self.inputs if self.wrt == "input" else self.bare[0].weight.detach()
        rows = torch.randn(case.columns, self.point.numel(), generator=generator.manual_seed(1))
        self.columns = rows.to(device, dtype).T

    def f(self, x: Tensor) -> Tensor:
        if self.wrt == "input":
            return self.bare(x)
        return func.functional_call(self.bare, {"0.weight": x}, (self.inputs,))

    def product(self, multiply: Callable[[Tensor], Tensor], batched: bool = False) -> Product:
        """A product by a function of a vector in the point's shape, or of all, (K, *shape)."""

        def product(columns: Tensor) -> Tensor:
            vectors = columns.T.reshape(-1, *self.point.shape)
            if batched:
                return multiply(vectors).detach().flatten(1).T
            rows = columns.new_empty(columns.shape[1], columns.shape[0])
            for row, v in zip(rows, vectors):
                row.copy_(multiply(v).detach().flatten())
            return rows.T

        return product


def local_hessian(p: Problem, form: str = "auto") -> Product:
    """``LocalHessian``, made anew: whatever it computes once is part of its first product."""
    return LocalHessian(p.module, p.inputs, wrt=p.wrt, form=form).__matmul__


def double_backward(p: Problem, batched: bool = False) -> Product:
    """``J v`` as the derivative of ``J^T u`` in u, then ``J^T (J v)``; both graphs are kept."""
    x = p.point.detach().clone().requires_grad_()
    z = p.f(x)
    u = torch.zeros_like(z, requires_grad=True)
    (pulled,) = torch.autograd.grad(z, x, u, create_graph=True)
    grad = partial(torch.autograd.grad, retain_graph=True, is_grads_batched=batched)
    return p.product(lambda v: grad(z, x, grad(pulled, u, v)[0])[0], batched)


def jvp_vjp(p: Problem, batched: bool = False) -> Product:
    """Forward mode, then the kept backward graph: vector by vector, or ``vmap`` over all."""
    _, pull, *_ = func.vjp(p.f, p.point)

    def multiply(v: Tensor) -> Tensor:
        return pull(func.jvp(p.f, (p.point,), (v,))[1])[0]

    return p.product(func.vmap(multiply) if batched else multiply, batched)


def linearize_vjp(p: Problem) -> Product:
    """As :func:`jvp_vjp`; the forward pass is traced once and not repeated for each vector."""
    _, pull, *_ = func.vjp(p.f, p.point)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        _, push = func.linearize(p.f, p.point)
    return p.product(lambda v: pull(push(v))[0])


def curvlinops(p: Problem) -> Product:
    """``curvlinops.GGNLinearOperator``; the Hessian of ``MSELoss("sum")`` is 2 I, hence the half.

    Its check that the data come in the same order (two more products) is off. The interface is
    3.0.1's: 3.0.0 needs weights that require gradients, later ones take parameters as a dict.
    """
    from curvlinops import GGNLinearOperator

    model, point = p.bare, p.bare[0].weight
    if p.wrt == "input":  # it knows parameters alone
        model = nn.Module()
        model.x = point = nn.Parameter(p.point)
        model.forward = lambda ignored: p.bare(model.x)
    data = [(p.inputs, torch.zeros_like(p.bare(p.inputs)))]
    options = {"check_deterministic": False, "num_data": len(p.inputs)}
    operator = GGNLinearOperator(model, nn.MSELoss(reduction="sum"), [point], data, **options)
    return lambda columns: (operator @ columns).detach().mul_(0.5)


Contender = Callable[[Problem], Product]
PEERS: dict[str, Contender] = {
    "double backward": double_backward,
    "double backward, batched": partial(double_backward, batched=True),
    "jvp + vjp loop": jvp_vjp,
    "linearize + vjp loop": linearize_vjp,
    "vmap(jvp + vjp)": partial(jvp_vjp, batched=True),
    **({"curvlinops": curvlinops} if importlib.util.find_spec("curvlinops") else {}),
}
FORMS = {f"{OURS}, {f}": partial(local_hessian, form=f) for f in ("gram", "factored", "autograd")}
CONTENDERS: dict[str, Contender] = {OURS: local_hessian, **PEERS, **FORMS}  # forms: when named
