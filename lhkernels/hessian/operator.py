"""The local Hessian of a block as a symmetric linear operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lhkernels.hessian import trace as _trace
from lhkernels.hessian.find_form import FORMS, find
from lhkernels.hessian.snapshot import Snapshot
from lhkernels.hessian.symmetric import SpectralBlock, SymmetricOperator

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

WRT = ("weight", "input")
KINDS = ("gauss_newton", "full")


class LocalHessian(SymmetricOperator):
    """Local Hessian of one block z = F(W, x): the curvature of its back-matching loss.

    The back-matching loss is 1/2 ||z_target - F(W, x)||^2 (paper, equation (5)). With J the
    Jacobian of F, its Hessian (6) at the current point is::

        H = J^T J + sum_i g[i] d2F_i,     g = F - z_target = d loss / d z

    ``kind="gauss_newton"`` is the first term, ``kind="full"`` both. Blocks made of a linear layer
    or a convolution, alone or with a batch norm, use a closed form (docs/local-hessian.md);
    everything else is differentiated twice by autograd.

    Args:
        module: the block. It is copied, and nothing of it changes: parameters, gradients,
            buffers, mode; nor does the global random state of torch, Python and NumPy. Blocks in
            train mode use batch statistics; dropout uses one mask, the same for every product.
            The first product refuses a block that gives another output when it is evaluated again.
        inputs: its recorded input, a tensor or a tuple of tensors for ``module(*inputs)``.
        wrt: ``"weight"``: every parameter with ``ndim >= 2``, frozen ones too, flattened and
            concatenated in ``named_parameters()`` order, a tied one once.
            ``"input"``: the whole recorded input, batch included.
        kind: ``"gauss_newton"`` or ``"full"``.
        output_grad: g, in the output's shape, for ``kind="full"``; the Gauss-Newton part does not
            depend on it.
        approximate: drop the terms in 1/m of linear or convolution + train-mode batch norm, the
            paper's (17)-(18); an error for any other block.
        form: ``"auto"`` counts operations; ``"gram"``, ``"factored"`` and ``"autograd"`` insist.
        memory_limit: bytes of workspace for products; None for a default. At least one vector
            is always treated at a time.

    An output that doesn't depend on the weights (or input) has H = 0.

    Raises:
        TypeError, ValueError: an argument that can't be used, before anything is computed: see
            also :class:`lhkernels.hessian.snapshot.Snapshot`.

    Example:
        >>> import torch, lhkernels as lh
        >>> x = torch.randn(8, 5)
        >>> H = lh.LocalHessian(torch.nn.Linear(5, 3, bias=False), x)
        >>> torch.allclose(H.dense(), torch.kron(torch.eye(3), x.T @ x), atol=1e-5)
        True
    """

    __array_ufunc__ = None  # numpy's own @ must not take the operator apart

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor | tuple[Tensor, ...],
        wrt: str = "weight",
        kind: str = "gauss_newton",
        output_grad: Tensor | None = None,
        *,
        approximate: bool = False,
        form: str = "auto",
        memory_limit: int | None = None,
    ) -> None:
        _check_choice("wrt", wrt, WRT)
        _check_choice("kind", kind, KINDS)
        _check_choice("form", form, FORMS)
        _check_memory_limit(memory_limit)
        self.snapshot = Snapshot(module, inputs)
        self.wrt = wrt
        self.kind = kind
        _check_points(self.snapshot, wrt)
        g = _check_output_grad(self.snapshot, kind, output_grad)
        self._form = find(self.snapshot, wrt, kind, g, approximate, form, memory_limit)
        self.dim, self.dtype, self.device = self._form.dim, self._form.dtype, self._form.device

    @property
    def form(self) -> str:
        """How products are computed, ``"gram"``, ``"factored"`` or ``"autograd"``.

        That of the last product; ``"auto"`` before the first one where its number of vectors
        decides.
        """
        return self._form.name

    def __matmul__(self, V: Tensor) -> Tensor:
        """H V for V (dim,) or (dim, K), of H's dtype and device; same shape, detached.

        For (dim, K) the result may be column-major: the K vectors lie one after another.
        """
        _check_vectors(V, self.dim, self.dtype, self.device)
        if V.ndim == 1:
            return self.product_rows(V.detach()[None])[0]
        return self.product_rows(V.detach().T).T

    def product_rows(self, rows: Tensor) -> Tensor:
        """H applied to each of K rows: (K, dim) -> (K, dim), without checks."""
        if len(rows) == 0:
            return rows.new_empty(rows.shape)
        return self._form.product_rows(rows)

    def known_trace(self) -> Tensor | None:
        return self._form.known_trace()

    def spectral_blocks(self) -> Iterator[SpectralBlock] | None:
        return self._form.spectral_blocks()

    def trace(self) -> Tensor:
        """Trace of H, a 0-dim tensor of H's dtype: exact, up to rounding.

        Where there is no closed form of it, that takes as many products as H has rows; of a large H
        :meth:`trace_estimate` samples it.
        """
        value = _trace.estimate(self, "exact").value
        return torch.tensor(value, dtype=self.dtype, device=self.device)

    def trace_estimate(
        self, method: str = "auto", probes: int = _trace.DEFAULT_PROBES, seed: int = 0
    ) -> _trace.TraceEstimate:
        """Trace of H from a few products, with its standard error.

        See :func:`lhkernels.hessian.trace.estimate`.
        """
        return _trace.estimate(self, method, probes, seed)

    def to_scipy(self) -> LinearOperator:
        """H as a ``scipy.sparse.linalg.LinearOperator`` on numpy arrays, for ``eigsh`` and others.

        Its dtype is H's (float32 for half precision); vectors are copied to H's device and back.

        Raises:
            ImportError: scipy is missing.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise ImportError("to_scipy() needs scipy: pip install lhkernels[hessian]") from error
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        dtype = torch.empty((), dtype=wide).numpy().dtype

        def product(x: Any) -> Any:
            if x.dtype.kind not in "fiu":
                raise TypeError(f"H is real, got a vector of dtype {x.dtype}")
            # A copy: torch takes neither negative strides nor arrays that can't be written.
            V = torch.from_numpy(x.astype(dtype, order="C")).to(self.device, self.dtype)
            return (self @ V.reshape(self.dim, -1)).reshape(x.shape).to("cpu", wide).numpy()

        return LinearOperator(
            tuple(self.shape), matvec=product, matmat=product, rmatvec=product, dtype=dtype
        )

    def __repr__(self) -> str:
        return (
            f"LocalHessian({type(self.snapshot.module).__name__}, wrt={self.wrt!r}, "
            f"kind={self.kind!r}, form={self.form!r}, dim={self.dim}, dtype={self.dtype}, "
            f"device={str(self.device)!r})"
        )


def _check_points(snapshot: Snapshot, wrt: str) -> None:
    """What H is with respect to must be there, real and of one dtype."""
    points = snapshot.points(wrt)
    if not points:
        raise ValueError(
            f"{type(snapshot.module).__name__} has no parameter with ndim >= 2: use "
            "wrt='input', or a block with a weight"
        )
    first, dtype = next((name, t.dtype) for name, t in points.items())
    for name, t in points.items():
        if not t.is_floating_point():
            raise ValueError(
                f"wrt={wrt!r} needs floating-point tensors, {name} has {t.dtype}: use the other "
                "wrt, or keep such inputs inside the block"
            )
        if t.dtype != dtype:
            raise ValueError(
                f"wrt={wrt!r} needs tensors of one dtype: {first} has {dtype}, {name} has "
                f"{t.dtype}; convert the block"
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_memory_limit(value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"memory_limit must be a number of bytes (int) or None, got {value!r}")
    if value <= 0:
        raise ValueError(f"memory_limit must be a positive number of bytes, got {value}")


def _check_output_grad(snapshot: Snapshot, kind: str, output_grad: Tensor | None) -> Tensor | None:
    if kind != "full":
        return None
    if output_grad is None:
        raise ValueError(
            "kind='full' needs output_grad, the gradient of the loss at the block's output"
        )
    if not isinstance(output_grad, Tensor):
        raise TypeError(f"output_grad must be a tensor, got {type(output_grad).__name__}")
    z = snapshot.output
    for name in ("shape", "dtype", "device"):
        ours, theirs = getattr(z, name), getattr(output_grad, name)
        if ours != theirs:
            raise ValueError(f"output_grad has {name} {theirs}, the block's output has {ours}")
    if not bool(torch.isfinite(output_grad.detach()).all()):
        raise ValueError("output_grad has NaN or infinite values")
    with torch.inference_mode(False):
        return output_grad.detach().clone()


def _check_vectors(V: Any, dim: int, dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(V, Tensor):
        raise TypeError(
            f"H @ V needs a torch tensor, got {type(V).__name__}: convert it by torch.as_tensor, "
            "or use H.to_scipy() for numpy arrays"
        )
    if V.ndim not in (1, 2) or V.shape[0] != dim:
        raise ValueError(
            f"V must have shape ({dim},) or ({dim}, K), got {tuple(V.shape)}: H is {dim} x {dim}"
        )
    if V.dtype != dtype:
        raise TypeError(f"V has dtype {V.dtype}, H has {dtype}: use V.to({dtype})")
    if V.device != device:
        raise ValueError(f"V is on {V.device}, H on {device}: use V.to({str(device)!r})")
    # The sum takes a fifth of the time and no memory; finite numbers may overflow in it.
    if not bool(torch.isfinite(V.sum())) and not bool(torch.isfinite(V).all()):
        raise ValueError("V has NaN or infinite values")
