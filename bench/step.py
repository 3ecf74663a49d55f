"""Time opt.step(), host included, on the parameter shapes of real networks.

Every contender has its own parameters, gradients and momentum buffers, so that none finds another's
data in a cache. A round times one step of each. 'ratio' is the median over rounds of the time to
torch.optim.SGD(fused=True), with its quartiles; 'GB/s' counts the floor of 5 accesses an element
(20 bytes in float32); '/copy' is that to a measured dst.copy_(src).
"""

import contextlib
import gc
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lhkernels as lh
from bench.common import CPU, OURS, Measured, Rows, Table, add_timing, shown
from bench.timing import count_launches, in_turns, measure_copy, quartiles, timed
from lhkernels.cli import options
from lhkernels.cli.errors import CommandError
from lhkernels.step import fused_backend

BASELINE, LARS = "torch fused", "LARS (pytorch_optimizer)"
HYPERPARAMETERS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
LARGE = 500_000_000  # elements; above, ours and torch's fused step alone, on the same gradients
ONE_PASS = 5  # read W, gradient and momentum; write W and momentum
NETWORKS = json.loads(Path(__file__).with_name("shapes.json").read_text())
Shapes = list[tuple[int, ...]]
MODELS: dict[str, Shapes] = {
    name: [tuple(shape) for times, run in network["runs"] for _ in range(times) for shape in run]
    for name, network in NETWORKS.items()
}
CPU_MODELS, LARGE_MODELS = list(MODELS)[:4], list(MODELS)[4:]  # those on a GPU, in bfloat16


def contenders(device: torch.device = CPU) -> dict[str, tuple[str, int, Callable]]:
    """By name: its name on pages, its operations' accesses to an element, and how it is made."""

    def of(make: Callable, **options: Any) -> Callable[[list[nn.Parameter]], Any]:
        return lambda ps: make(ps, **options, **HYPERPARAMETERS)

    sgd, ours, reference = torch.optim.SGD, lh.ScaleAmendedSGD, "lhkernels reference"
    found = {
        BASELINE: ("`torch.optim.SGD(fused=True)`", ONE_PASS, of(sgd, fused=True)),
        OURS: ("`ScaleAmendedSGD`", ONE_PASS, of(ours, fused=True)),
        f"{OURS}, amend=False": (
            "`ScaleAmendedSGD(amend=False)`", ONE_PASS, of(ours, fused=True, amend=False)
        ),
        "torch foreach": ("`torch.optim.SGD(foreach=True)`", 11, of(sgd, foreach=True)),
        "torch loop": ("`torch.optim.SGD(foreach=False)`", 11, of(sgd, foreach=False)),
        reference: ("`ScaleAmendedSGD(foreach=False)`, the reference", 16, of(ours, foreach=False)),
    }  # fmt: skip
    with contextlib.suppress(ImportError):  # peers that are installed
        import optimi

        how, accesses = ("triton", ONE_PASS) if device.type == "cuda" else ("foreach", 11)
        found["optimi SGD"] = ("optimi SGD", accesses, of(optimi.SGD, **{how: True}))
    with contextlib.suppress(ImportError):
        import pytorch_optimizer

        found[LARS] = (LARS, 17, of(pytorch_optimizer.LARS))
    return found


def add_options(parser: Any) -> None:
    add, known = parser.add_argument, options.names(lambda: MODELS)
    add("--models", type=known, metavar="A,B", help=f"of {', '.join(MODELS)} (default: fitting)")
    known = options.names(contenders, ";")
    add("--contenders", type=known, metavar="A;B", help="names as in the table (default: all)")
    add_timing(parser, 10.0, "a model")


def measure(args: Any) -> Measured:
    """A model's rows at a time."""
    backend, reason = fused_backend(args.device.type, torch.float32)
    if backend is None:
        raise CommandError(f"there is no fused step to time on {args.device.type}: {reason}")
    for model in args.models or CPU_MODELS + LARGE_MODELS * (args.device.type == "cuda"):
        dtype = torch.bfloat16 if model in LARGE_MODELS else torch.float32
        rows = compare(args, MODELS[model], args.contenders, dtype, measure_copy(args.device))
        yield [{"model": model, **row} for row in rows]


def compare(
    args: Any, shapes: Shapes, chosen: list[str] | None, dtype: Any = torch.float32,
    copy_rate: float = math.nan,
) -> Rows:  # fmt: skip
    """Time the chosen contenders (None: all that fit) on these shapes for ``args.seconds``."""
    gc.collect()  # the parameters of the last comparison
    device, elements = args.device, sum(map(math.prod, shapes))
    known, optimizers = contenders(device), {}
    grads = random_tensors(shapes, 1e-3, device, dtype) if elements > LARGE else None
    for name in chosen or list(known)[: 2 if elements > LARGE else None]:
        params = [nn.Parameter(w) for w in random_tensors(shapes, 0.02, device, dtype)]
        for p, g in zip(params, grads or random_tensors(shapes, 1e-3, device, dtype)):
            p.grad = g
        optimizers[name] = known[name][2](params)
    steps = {name: partial(timed, opt.step, device) for name, opt in optimizers.items()}
    in_turns(steps, 0, 2)  # buffers, tables and compiled kernels exist from here on
    times = in_turns(steps, args.seconds, 7)
    rows = []
    for name, opt in optimizers.items():
        middle = statistics.median(times[name])
        rate = 1e-9 * ONE_PASS * elements * dtype.itemsize / middle
        rows.append(
            {"contender": name, "dtype": str(dtype).removeprefix("torch."), "tensors": len(shapes)}
            | {"elements": elements, "rounds": len(times[name]), "ms": 1e3 * middle}
            | quartiles("ratio", [t / b for t, b in zip(times[name], times.get(BASELINE, []))])
            | {"gb_per_s": rate, "of_copy": rate / copy_rate}
            | {"launches": count_launches(opt.step) if device.type == "cuda" else None}
            | {"bytes_per_element": float(known[name][1] * dtype.itemsize)}
        )
    return rows


def random_tensors(shapes: Shapes, std: float, device: Any, dtype: Any) -> list[Tensor]:
    """Normal tensors of these shapes."""
    return [torch.empty(s, device=device, dtype=dtype).normal_(std=std) for s in shapes]


def cells(rows: Rows) -> Table:
    """A model's table."""
    specs = {"ms": ".2f", "ratio": ".2f", "ratio_low": ".2f", "ratio_high": ".2f"}
    specs |= {"gb_per_s": ".1f", "of_copy": ".2f", "launches": "d"}
    lines = [[r["contender"], *(shown(r[k], spec=s) for k, s in specs.items())] for r in rows]
    heads = ["", "ms", "ratio", "lower", "upper", "GB/s", "/copy", "launches"]
    title = "{model}: {0:.1f} M in {tensors} tensors, {dtype}, {rounds} rounds"
    made = title.format(rows[0]["elements"] / 1e6, **rows[0])
    return {"columns": heads, "rows": lines, "title": made}


def compared(results: Rows) -> Table:
    """Milliseconds of torch's fused SGD, then everyone's time relative to it, a column a model."""
    rows = {(row["contender"], row["model"]): row for row in results}
    sizes = {row["model"]: row["elements"] for row in results}
    found = list(dict.fromkeys([BASELINE, *(row["contender"] for row in results)]))
    known = contenders()
    heads, lines = ["`opt.step()`, momentum and weight decay"], []
    for model, n in sizes.items():
        count = f"{n / 1e9:.3g} B" if n >= 1e9 else f"{n / 1e6:.3g} M"
        heads.append(f"{NETWORKS.get(model, {'title': model})['title']}, {count}")
    for name in found:
        field, unit, spec = ("ms", " ms", "") if name == BASELINE else ("ratio", "", ".2f")
        times = [shown(rows.get((name, m), {}).get(field), unit, spec) for m in sizes]
        lines.append([known.get(name, (name,))[0], *times])
    ours = [i for i, name in enumerate(found) if name == OURS]
    return {"columns": heads, "rows": lines, "bold": ours}
