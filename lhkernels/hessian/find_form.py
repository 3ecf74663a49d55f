"""Which closed form a block has."""

from __future__ import annotations

from lhkernels.hessian.closed_forms import DEFAULT_MEMORY_LIMIT, ClosedForm
from lhkernels.hessian.input_form import InputForm
from lhkernels.hessian.layer import Layer, read
from lhkernels.hessian.snapshot import Snapshot
from lhkernels.hessian.weight_form import WeightForm


def find(
    snapshot: Snapshot,
    wrt: str,
    kind: str,
    approximate: bool,
    form: str,
    memory_limit: int | None,
) -> ClosedForm | None:
    """The block's closed form; None if it has none.

    Raises:
        ValueError: ``approximate`` or ``form`` asks for what this block has not.
    """
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
        layer = None
    if layer is None:
        if form in ("gram", "factored"):
            raise ValueError(
                f"form={form!r} is for Gauss-Newton products of one linear or convolutional layer, "
                f"alone or with a batch norm, not for this {type(snapshot.module).__name__} with "
                f"kind={kind!r}: use form='auto'"
            )
        return None
    limit = DEFAULT_MEMORY_LIMIT if memory_limit is None else memory_limit
    made = WeightForm if wrt == "weight" else InputForm
    return made(layer, approximate, form, limit)


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
