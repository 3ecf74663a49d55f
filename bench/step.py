"""Time opt.step(), host included, on the parameter shapes of real networks.

Every contender has its own parameters, gradients and momentum buffers, so that none finds another's
data in a cache. A round times one step of each. 'ratio' is the median over rounds of the time to
torch.optim.SGD(fused=True), with its quartiles; 'GB/s' counts the floor of 5 accesses an element
(20 bytes in float32): read W, gradient and momentum, write W and momentum; '/copy' is that to a
measured dst.copy_(src). bytes_per_element, in JSON, is what the step's operations read and write.
"""

import contextlib
import gc
import math
import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lhkernels as lh
from bench.common import OURS, Measured, Rows, Table, add_timing, shown
from bench.shapes import CPU_MODELS, LARGE_MODELS, MODELS, Shape
from bench.timing import count_launches, in_turns, measure_copy, quartiles, timed
from lhkernels import tables
from lhkernels.cli import options
from lhkernels.cli.errors import CommandError
from lhkernels.step import fused_backend

BASELINE = "torch fused"
HYPERPARAMETERS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
LARGE = 500_000_000  # elements; above, ours and torch's fused step alone, on the same gradients
ONE_PASS = 5  # read W, gradient and momentum; write W and momentum
TITLES = ("VGG13", "ResNet-50", "ViT-B/16", "GPT-2 small", "1 B, bf16", "7 B, bf16")
CALLS = {
    BASELINE: "`torch.optim.SGD(fused=True)`",
    OURS: "`ScaleAmendedSGD`",
    "lhkernels, amend=False": "`ScaleAmendedSGD(amend=False)`",
    "lhkernels reference": "`ScaleAmendedSGD(foreach=False)`, the reference",
    "torch foreach": "`torch.optim.SGD(foreach=True)`",
    "torch loop": "`torch.optim.SGD(foreach=False)`",
}


def contenders() -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    """Factories by name: torch's fused SGD and ours first, then peers that are installed."""
    sgd = partial(torch.optim.SGD, **HYPERPARAMETERS)
    ours = partial(lh.ScaleAmendedSGD, **HYPERPARAMETERS)
    found: dict[str, Callable] = {
        BASELINE: partial(sgd, fused=True),
        OURS: partial(ours, fused=True),
        "lhkernels, amend=False": partial(ours, fused=True, amend=False),
        "torch foreach": partial(sgd, foreach=True),
        "torch loop": partial(sgd, foreach=False),
        "lhkernels reference": partial(ours, foreach=False),
    }
    with contextlib.suppress(ImportError):
        import optimi

        found["optimi SGD"] = lambda ps: optimi.SGD(
            ps, **{"triton" if ps[0].is_cuda else "foreach": True}, **HYPERPARAMETERS
        )
    with contextlib.suppress(ImportError):
        import pytorch_optimizer

        found["LARS (pytorch_optimizer)"] = partial(pytorch_optimizer.LARS, **HYPERPARAMETERS)
    return found


def add_options(parser: Any) -> None:
    add, known = parser.add_argument, options.names(lambda: MODELS)
    which = f"of {', '.join(MODELS)} (default: those that fit)"
    add("--models", type=known, metavar="A,B", help=which)
    known = options.names(contenders, ";")
    add("--contenders", type=known, metavar="A;B", help="names as in the table (default: all)")
    add_timing(parser, 10.0, "a model")


def measure(args: Namespace) -> Measured:
    backend, reason = fused_backend(args.device.type, torch.float32)
    if backend is None:
        raise CommandError(f"there is no fused step to time on {args.device.type}: {reason}")
    for model in args.models or CPU_MODELS + LARGE_MODELS * (args.device.type == "cuda"):
        dtype = torch.bfloat16 if model in LARGE_MODELS else torch.float32
        rate = measure_copy(args.device)
        rows = compare(args, MODELS[model](), args.contenders, dtype)
        yield [{"model": model, **row, "of_copy": row["gb_per_s"] / rate} for row in rows]


def compare(
    args: Namespace, shapes: list[Shape], chosen: list[str] | None, dtype: Any = torch.float32
) -> Rows:
    """Time the chosen contenders (None: all that fit) on these shapes for ``args.seconds``."""
    gc.collect()  # the parameters of the last comparison
    device, elements = args.device, sum(map(math.prod, shapes))
    factories, optimizers = contenders(), {}
    grads = random_tensors(shapes, 1e-3, device, dtype) if elements > LARGE else None
    for name in chosen or list(factories)[: 2 if elements > LARGE else None]:
        params = [nn.Parameter(w) for w in random_tensors(shapes, 0.02, device, dtype)]
        for p, g in zip(params, grads or random_tensors(shapes, 1e-3, device, dtype)):
            p.grad = g
        optimizers[name] = factories[name](params)
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
            | {"gb_per_s": rate}
            | {"launches": count_launches(opt.step) if device.type == "cuda" else None}
            | {"bytes_per_element": bytes_per_element(opt)}
        )
    return rows


def random_tensors(shapes: list[Shape], std: float, device: Any, dtype: Any) -> list[Tensor]:
    return [torch.empty(s, device=device, dtype=dtype).normal_(std=std) for s in shapes]


class Traffic(TorchDispatchMode):
    """Sums the bytes of operands read and of results written inside; caches are not modelled."""

    total = 0
    fused = False  # such operations name more than they touch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        self.fused |= name.startswith(("aten::_fused_sgd_", "lhkernels::"))
        if not func.is_view and "empty" not in name and "_local_scalar" not in name:  # metadata
            written = args[0] if func._schema.is_mutable else out
            read = (args[1:] if name.endswith(("copy_", "zero_", "fill_")) else args, kwargs)
            tensors = [t for t in tree_leaves((written, read)) if isinstance(t, Tensor)]
            self.total += sum(t.nbytes for t in tensors)
        return out


def bytes_per_element(opt: torch.optim.Optimizer) -> float:
    """Bytes that one step reads and writes for an element: one pass, or what operations name."""
    params = [p for group in opt.param_groups for p in group["params"]]
    with Traffic() as traffic:
        opt.step()
    if traffic.fused or traffic.total == 0:  # a kernel that the dispatcher does not see
        return float(ONE_PASS * params[0].element_size())
    return traffic.total / sum(p.numel() for p in params)


def cells(rows: Rows) -> Table:
    specs = {"ms": ".2f", "ratio": ".2f", "ratio_low": ".2f", "ratio_high": ".2f"}
    specs |= {"gb_per_s": ".1f", "of_copy": ".2f", "launches": "d"}
    lines = [[r["contender"], *(shown(r[k], spec=s) for k, s in specs.items())] for r in rows]
    heads = ["", "ms", "ratio", "lower", "upper", "GB/s", "/copy", "launches"]
    title = "{model}: {0:.1f} M in {tensors} tensors, {dtype}, {rounds} rounds"
    title = title.format(rows[0]["elements"] / 1e6, **rows[0])
    return {"columns": heads, "rows": lines, "title": title}


def compared(results: Rows) -> str:
    """Milliseconds of torch's fused SGD, then everyone's time relative to it, a column a model."""
    rows = {(row["contender"], row["model"]): row for row in results}
    sizes = {row["model"]: row["elements"] for row in results}
    found = list(dict.fromkeys([BASELINE, *(row["contender"] for row in results)]))
    heads, lines = ["`opt.step()`, momentum and weight decay"], []
    for model, n in sizes.items():
        count = f"{n / 1e9:.3g} B" if n >= 1e9 else f"{n / 1e6:.3g} M"
        heads.append(f"{dict(zip(MODELS, TITLES)).get(model, model)}, {count}")
    for name in found:
        field, unit, spec = ("ms", " ms", "") if name == BASELINE else ("ratio", "", ".2f")
        times = [shown(rows.get((name, m), {}).get(field), unit, spec) for m in sizes]
        lines.append([CALLS.get(name, name), *times])
    return tables.to_markdown(heads, lines, bold=[i for i, n in enumerate(found) if n == OURS])
