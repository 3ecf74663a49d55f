"""What ``lhkernels spectrum`` shows: a table of blocks, one block, JSON, a picture."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lhkernels.cli.errors import CommandError, writing

if TYPE_CHECKING:
    from torch import Tensor

    from lhkernels.cli.spectrum_blocks import Block
    from lhkernels.hessian import LocalHessian, Spectrum

MOMENTS = 4


def list_blocks(
    args: argparse.Namespace, model: Any, blocks: list[Block], images: Tensor, labels: Tensor
) -> int:
    """The blocks with the shapes that pass through them."""
    from lhkernels.cli.spectrum_blocks import record
    from lhkernels.cli.spectrum_text import table

    rows = []
    for block in blocks:
        seen = record(model, block, images, labels)
        weights = [p.numel() for p in block.module.parameters() if p.ndim >= 2]
        rows.append((block.name, block.what, shape(seen.inputs), shape(seen.output), sum(weights)))
    if args.json:
        keys = ("block", "modules", "input", "output", "weights")
        print(json.dumps([dict(zip(keys, row)) for row in rows], indent=2))
        return 0
    cells = [(name, *map(str, rest)) for name, *rest in rows]
    print(table(("block", "modules", "input", "output", "weights"), cells, terminal_width()))
    return 0


def heading(args: argparse.Namespace, images: Tensor) -> list[str]:
    from lhkernels.cli.spectrum_text import wrapped

    what = "H_W, weights" if args.wrt == "weight" else "H_z, input"
    kind = "full Hessian" if args.kind == "full" else "Gauss-Newton"
    parts = [f"{args.model} on {args.data} {shape(images)}", f"{what}", kind, args.dtype]
    parts += [f"init {args.init}"] if args.init != "default" else []
    parts += [f"weights x {args.init_scale:g}"] if args.init_scale != 1 else []
    return [*wrapped(", ".join(parts), terminal_width()), ""]


def all_blocks(found: list[tuple[Block, LocalHessian, Spectrum]]) -> str:
    """A row per block; the columns that matter most come first."""
    from lhkernels.cli.spectrum_text import number, percent, table

    header = ("block", "dim", "largest", "smallest", "cond", "zero", "mean", "method", "form")
    rows = [
        (
            block.name,
            str(S.dim),
            number(S.largest),
            number(S.smallest_nonzero),
            number(S.condition_number, 3),
            percent(S.zero_fraction),
            number(trace(H, S)[0] / S.dim),
            S.method,
            form(H),
        )
        for block, H, S in found
    ]
    return table(header, rows, terminal_width())


def one_block(block: Block, H: LocalHessian, S: Spectrum) -> str:
    """All about one spectrum, and its histogram."""
    from lhkernels.cli.spectrum_text import histogram, number, pairs, percent

    width = terminal_width()
    sampled = f", {S.probes} probes x {S.steps} steps" if S.probes else ""
    bounds, (total, error) = S.bounds, trace(H, S)
    rows = [
        ("block", f"{block.name} ({block.what})"),
        ("dim", str(S.dim)),
        ("form", form(H)),
        ("method", S.method + sampled),
        ("largest", f"{number(S.largest, 6)} ± {number(bounds.largest, 2)}"),
        (
            "smallest",
            f"{number(S.smallest_nonzero, 6)} ± {number(bounds.smallest_nonzero, 2)} (non-zero)",
        ),
        ("condition", number(S.condition_number, 6)),
        ("zero", f"{percent(S.zero_fraction)} (up to {number(S.zero_tolerance, 3)} counts as 0)"),
        ("trace", number(total, 6) + (f" ± {number(error, 2)}" if error else "")),
        ("moments", "  ".join(number(moment["value"]) for moment in moments(S))),
    ]
    values, weights = S.eigenvalues.tolist(), S.weights.tolist()
    bars = histogram(values, weights, width, "█" if unicode_output() else "#")
    return "\n".join([pairs(rows, width), "", "eigenvalues", *bars])


def moments(S: Spectrum) -> list[dict[str, float]]:
    """trace(H^k) / dim for k = 1 to 4, as far as the Lanczos steps allow."""
    highest = MOMENTS if not S.probes else min(MOMENTS, 2 * S.steps - 1)
    found = [S.moment(k) for k in range(1, highest + 1)]
    return [{"value": m.value, "standard_error": m.standard_error} for m in found]


def form(H: LocalHessian) -> str:
    """Whether the block has a closed form."""
    return "autograd" if H.form == "autograd" else "closed"


def trace(H: LocalHessian, S: Spectrum) -> tuple[float, float]:
    """Its value and standard error: a closed form's, which has none, or the spectrum's."""
    exact = H.known_trace()
    if exact is not None:
        return float(exact), 0.0
    value, error = S.moment(1)
    return value * S.dim, error * S.dim if S.probes else 0.0


def as_json(block: Block, H: LocalHessian, S: Spectrum) -> dict[str, Any]:
    """A row for programs; what does not exist is null."""
    total, error = trace(H, S)
    row = {
        "block": block.name,
        "modules": block.what,
        "dim": S.dim,
        "form": form(H),
        "method": S.method,
        "probes": S.probes,
        "steps": S.steps,
        "largest": S.largest,
        "smallest": S.smallest,
        "smallest_nonzero": S.smallest_nonzero,
        "bounds": dict(S.bounds._asdict()),
        "condition_number": S.condition_number,
        "zero_fraction": S.zero_fraction,
        "zero_tolerance": S.zero_tolerance,
        "trace": total,
        "trace_standard_error": error,
        "moments": moments(S),
    }
    return without_nan(row)


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def options(args: argparse.Namespace) -> dict[str, Any]:
    hidden = ("run", "command", "json", "list", "plot")
    return {name: value for name, value in vars(args).items() if name not in hidden}


def draw(found: list[tuple[Block, LocalHessian, Spectrum]], args: argparse.Namespace) -> None:
    """A histogram per block, in a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError(f"--plot needs matplotlib: {error}") from error
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(5.5 * columns, 4 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for (block, _, S), axes in zip(found, panels):
        S.plot(axes)
        axes.set_title(f"{block.name}, {block.what}")
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    with writing("--plot", Path(args.plot)):
        figure.savefig(args.plot)
    print(f"\nwritten to {args.plot}", file=sys.stderr)


def terminal_width() -> int:
    return max(30, min(80, shutil.get_terminal_size().columns))


def unicode_output() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
