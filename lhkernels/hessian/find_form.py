"""How a block's products are computed: by a closed form where there is one, else by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from lhkernels.hessian.autograd import AutogradForm
from lhkernels.hessian.closed_forms import DEFAULT_MEMORY_LIMIT, ClosedForm
from lhkernels.hessian.input_form import InputForm
from lhkernels.hessian.layer import Layer, read
from lhkernels.hessian.snapshot import Snapshot
from lhkernels.hessian.weight_form import WeightForm

FORMS = ("auto", "gram", "factored", "autograd")


def find(
    snapshot: Snapshot,
    wrt: str,
    kind: str,
    output_grad: Tensor | None,
    approximate: bool,
    form: str,
    memory_limit: int | None,
) -> ClosedForm | AutogradForm:
    """The block's form; the arguments are those of :class:`lhkernels.LocalHessian`.

    Raises:
        ValueError: ``approximate`` or ``form`` asks for what this block has not.
    """
    if approximate and form == "autograd":
        raise ValueError(
            "approximate=True has no form 'autograd': leave form at 'auto', or set "
            "approximate=False"
        )
    if form != "autograd" and _has_closed_dtype(snapshot, form == "auto" and not approximate):
        layer = _closed_layer(snapshot, wrt, kind, approximate)
        if layer is not None:
            limit = DEFAULT_MEMORY_LIMIT if memory_limit is None else memory_limit
            made = WeightForm if wrt == "weight" else InputForm
            return made(layer, approximate, form, limit)
        if form != "auto":
            raise ValueError(
                f"form={form!r} is for Gauss-Newton products of one linear or convolutional layer, "
                f"alone or with a batch norm, not for this {type(snapshot.module).__name__} with "
                f"kind={kind!r}: use form='auto'"
            )
    _ = snapshot.output  # a block that can't be used says so now
    return AutogradForm(snapshot, wrt, output_grad, memory_limit)


def _has_closed_dtype(snapshot: Snapshot, may_lack: bool) -> bool:
    """Whether all is float32, or all float64; an error where not, unless it ``may_lack`` that."""
    dtypes = {t.dtype for t in (*snapshot.parameters.values(), *snapshot.inputs)}
    if len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}:
        return True
    if may_lack:
        return False
    names = ", ".join(sorted(map(str, dtypes)))
    raise ValueError(
        "closed forms need a block and an input that are all float32 or all float64, "
        f"got {names}: convert them, or leave form at 'auto' and approximate at False"
    )


def _closed_layer(snapshot: Snapshot, wrt: str, kind: str, approximate: bool) -> Layer | None:
    """The layer that the block is, if it has a closed form."""
    layer = read(snapshot)
    if layer is not None:
        _ = snapshot(inputs=layer.inputs[:2])  # what the module itself refuses, it refuses here
        if wrt == "weight" and not _is_only_weight(layer, snapshot):
            layer = None
    trains = layer is not None and layer.in_train_mode
    if approximate:
        _check_approximate(layer, trains, kind)
    if layer is not None and trains and (kind == "full" or min(layer.places, layer.patch_size) < 3):
        # A batch norm has curvature of its own. And where there are only its mean and its scale to
        # vary, which it takes away, the closed form would be a difference of equal numbers.
        return None
    return layer


def _is_only_weight(layer: Layer, snapshot: Snapshot) -> bool:
    """Whether nothing but the layer's weight has two dimensions or more."""
    found = [snapshot.parameters[name] for name in snapshot.weight_names]
    return len(found) == 1 and found[0].data_ptr() == layer.weight.data_ptr()


def _check_approximate(layer: Layer | None, trains: bool, kind: str) -> None:
    if kind != "gauss_newton":
        raise ValueError(f"approximate=True is a Gauss-Newton form, not kind={kind!r}")
    if layer is None or layer.norm is None:
        raise ValueError(
            "approximate=True drops terms that only a linear or convolutional layer followed by a "
            "batch norm has; this block is none: set approximate=False"
        )
    if not trains:
        raise ValueError(
            "approximate=True is a form of train-mode batch norm, but this one is in eval mode and "
            "uses its running statistics: call module.train(), or set approximate=False"
        )
