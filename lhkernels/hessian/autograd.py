"""Products with the local Hessian of any block, by differentiating twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lhkernels.hessian.snapshot import Snapshot, plain_autograd
from lhkernels.hessian.symmetric import SymmetricOperator

DEFAULT_MEMORY_LIMIT = 1 << 29  # bytes of workspace

# On a CPU a batch of vectors gains over a loop only where the overhead of calls dominates: up to
# this size of the widest tensor in elements (measured; above it a batch takes up to twice as long).
CPU_BATCHING_LIMIT = 1 << 16


class AutogradForm(SymmetricOperator):
    """Products with H as for :class:`lhkernels.LocalHessian`, full where there is ``output_grad``.

    Gauss-Newton: with a dummy cotangent u, g(u) = J^T u is linear in u, so differentiating it
    with respect to u gives J v without forward mode, and one more backward pass gives J^T (J v).
    Full: the gradient J^T r of the back-matching loss is differentiated, with the residual
    r = F - z_target in the graph. Either graph is built at the first product and kept.

    Directions that the output doesn't depend on get zeros.
    """

    name = "autograd"

    def __init__(
        self, snapshot: Snapshot, wrt: str, output_grad: Tensor | None, memory_limit: int | None
    ) -> None:
        self.snapshot = snapshot
        self.wrt = wrt
        self.output_grad = output_grad
        self.memory_limit = DEFAULT_MEMORY_LIMIT if memory_limit is None else memory_limit
        points = list(snapshot.points(wrt).values())
        self._shapes = [p.shape for p in points]
        self._sizes = [p.numel() for p in points]
        self.dim, self.dtype, self.device = sum(self._sizes), points[0].dtype, snapshot.device
        self._one_product: Callable[[Tensor], Tensor] | None = None
        self._widest = 0
        self._batched = True

    def product_rows(self, rows: Tensor) -> Tensor:
        with plain_autograd(self.snapshot.device):
            try:
                return self._product(rows)
            except NotImplementedError as error:
                raise RuntimeError(
                    f"the block can't be differentiated twice: {error} "
                    "Replace that operation in the block"
                ) from error

    def _product(self, rows: Tensor) -> Tensor:
        if self._one_product is None:
            self._build()
        rows = rows.detach().contiguous()
        result = torch.empty_like(rows)
        step = self._rows_at_once()
        for start in range(0, len(rows), step):
            result[start : start + step] = self._chunk(rows[start : start + step])
        return result

    def _rows_at_once(self) -> int:
        # A backward pass holds a few tensors of the widest size at a time, and its vectors.
        per_row = self.dtype.itemsize * (6 * self._widest + 3 * self.dim)
        return max(1, self.memory_limit // max(1, per_row))

    def _chunk(self, rows: Tensor) -> Tensor:
        one = self._one_product
        assert one is not None
        if len(rows) > 1 and self._batched:
            try:
                with warnings.catch_warnings():
                    # An operation without a batching rule is looped over; that is no news.
                    warnings.filterwarnings("ignore", message=".*batching rule.*")
                    return torch.func.vmap(one)(rows).detach()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                self._batched = False  # an operation that can't be batched: never again
        return torch.stack([one(row) for row in rows]).detach()

    def _build(self) -> None:
        with _Widest() as seen:
            if self.wrt == "weight":
                # The copy's own parameters: a checkpointed part looks them up once more.
                own = dict(self.snapshot.module.named_parameters())
                leaves = [own[name].requires_grad_() for name in self.snapshot.weight_names]
                z = self.snapshot(parameters=dict(zip(self.snapshot.weight_names, leaves)))
            else:
                leaves = [x.detach().requires_grad_() for x in self.snapshot.inputs]
                z = self.snapshot(inputs=tuple(leaves))
        self.snapshot.check_repeats(z.detach())
        self._widest = seen.numel
        self._batched = z.is_cuda or self._widest <= CPU_BATCHING_LIMIT
        if not z.requires_grad:
            self._one_product = torch.zeros_like
        elif self.output_grad is None:
            self._one_product = self._gauss_newton(z, leaves)
        else:
            self._one_product = self._full(z, leaves, self.output_grad)

    def _gauss_newton(self, z: Tensor, leaves: list[Tensor]) -> Callable[[Tensor], Tensor]:
        u = torch.zeros_like(z, requires_grad=True)
        g = torch.autograd.grad(z, leaves, u, create_graph=True, allow_unused=True)

        def product(v: Tensor) -> Tensor:
            jv = _differentiate(g, [u], self._split(v))[0]
            return _flat(_differentiate([z], leaves, [jv]))

        return product

    def _full(
        self, z: Tensor, leaves: list[Tensor], output_grad: Tensor
    ) -> Callable[[Tensor], Tensor]:
        # Equal to output_grad, exactly, and with the derivative of F - z_target.
        residual = output_grad + (z - z.detach())
        g = torch.autograd.grad(z, leaves, residual, create_graph=True, allow_unused=True)

        def product(v: Tensor) -> Tensor:
            return _flat(_differentiate(g, leaves, self._split(v)))

        return product

    def _split(self, v: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(v.split(self._sizes), self._shapes)]


def _differentiate(
    outputs: tuple[Tensor | None, ...] | list[Tensor], inputs: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor, ...]:
    """Vector-Jacobian product; outputs that are constant or missing count as zero."""
    used = [(y, v) for y, v in zip(outputs, grads) if y is not None and y.requires_grad]
    if not used:
        return tuple(torch.zeros_like(x) for x in inputs)
    ys, vs = zip(*used)
    return torch.autograd.grad(ys, inputs, vs, retain_graph=True, materialize_grads=True)


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


class _Widest(TorchDispatchMode):
    """Notes the size of the largest tensor that is computed while it is active."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.numel())
        return result
