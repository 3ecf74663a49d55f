"""The parts of bench/gpu.py: their commands, and what is read from what these print.

``read(record, label, text)`` adds to the record's data and to its figures, the summary's rows; it
raises Failed if the result is bad. Where it is None, the exit status says all.
"""

import contextlib
import csv
import json
import re
import shlex
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Job = tuple[str, list[str], Callable[[dict[str, Any], str, str], None] | None]

STUDY = ("figure1", "heatmap", "heatmap-no-decay", "width", "depth")
PARTS = {  # limit in seconds, and what it is
    "tests": (420, "tests marked gpu, the Triton kernel's among them, compiled"),
    "step": (420, "step times beside peers', up to 7 B parameters"),
    "dram": (420, "DRAM bytes per element of a step, and its time on the device, by ncu"),
    "sanitizer": (480, "compute-sanitizer on tests of the step"),
    "hvp": (420, "batched Hessian-vector products"),
    "scaling": (420, "how cost grows with size"),
    **{name: (540, f"training study: {name}") for name in STUDY},
}
BENCH = {  # options of each process, a model without memory costs no other; and of a dry run's
    "step": (["--models vgg13,resnet50,vit-b16,gpt2-small", "--models transformer-1b",
              "--models transformer-7b"],
             ["--seconds 0.1 --models vgg13 --contenders 'torch fused;lhkernels'"]),
    "hvp": (["--seconds 5"],
            ["--seconds 0.01 --cases conv64 --contenders lhkernels --no-memory"]),
    "scaling": (["--passes 3"],
                ["--seconds 0.01 --parts step-elements --max-elements 1e4 --passes 1"]),
}  # fmt: skip
GROUPS = {"study": STUDY, "bench": tuple(BENCH)}
# Predictions for an H100, written before any run on a GPU: docs/step.md.
STEP_MS = {
    "resnet50": "0.19 - 0.21 ms", "vit-b16": "0.61 - 0.65 ms", "gpt2-small": "0.88 - 0.93 ms",
    "transformer-1b": "3.85 - 4.18 ms",  # docs/step.md's row for 1.0 B, at the benchmark's 1.10 B
    "transformer-7b": "24 - 26 ms",
}  # fmt: skip
DRAM = {
    "ours, float32": "20 bytes", "ours, float32, no momentum": "12 bytes",
    "ours, float32, as large as GPT-2 small": f"20 bytes, {STEP_MS['gpt2-small']}",
    "ours, bfloat16": "10 bytes", "ours, bfloat16, float32 momentum": "14 bytes",
    "torch fused, float32": "20 bytes", "torch fused, bfloat16": "10 bytes",
    "torch foreach, float32": "44 bytes",
}  # fmt: skip
READ, WRITTEN, TIME = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"
UNITS = {"byte": 1, "nsecond": 1e-9, "ns": 1e-9}
STEPS = 2  # profiled
# Clocks are left alone. Caches are flushed before each kernel, so that no read is served by what an
# earlier one left in L2; what this one leaves there unwritten is at most the L2's size.
NCU = (
    f"ncu --csv --print-units base --metrics {READ},{WRITTEN},{TIME} --profile-from-start off "
    "--target-processes all --clock-control none --cache-control all"
)
# Without torch's pool every tensor has bounds to check. Errors of CUDA's API are left out: torch
# probes for features, and handles refusals.
SANITIZER = (
    "env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --print-limit 10000 "
    "--target-processes application-only --tool"
)
TOOLS = ("memcheck --report-api-errors no", "racecheck", "initcheck", "synccheck")
PYTEST = "-m pytest -q -p no:cacheprovider"
CHECKED = (
    f"{PYTEST} tests/step/test_triton_kernel.py tests/step/test_triton_norms.py -k "
    "'options or default_tiles or unaligned or an_overflow or stochastic_rounding_follows'"
)
OURS = {"step_kernel", "refresh_kernel", "sq_norm_kernel"}
PLACE = re.compile(  # the kernel of an error; racecheck's warnings are none
    r"(?m)^={9}(?: Error: Race reported between \w+ access|  +) at "
    r"(?:0x\w+ in )?(.+?)(?:\+0x| in |$)"
)


class Failed(Exception):
    """Why a part is not ok, with the remedy where there is one."""

    def __init__(self, message: str, status: str = "failed") -> None:
        super().__init__(message)
        self.status = status


def jobs(part: str, args: Namespace) -> list[Job]:
    """(label, words, read) of a part's commands; in a dry run tiny ones, on the CPU and bare."""
    dry, device = args.dry_run, "cpu" if args.dry_run else "cuda"
    if part == "tests":
        files = sorted((ROOT / "tests").rglob("test_*.py"))  # others may need missing packages
        marked = (f for f in files if f.parent.name == "step" or "mark.gpu" in f.read_text())
        words = python(f"{PYTEST} -m gpu", *map(str, marked))
        return [("pytest", words, None if dry else read_tests)]
    if part in BENCH:
        words = f"-m lhkernels bench {part} --json --device {device} "
        return [(more, python(words + more), read_bench) for more in BENCH[part][dry]]
    if part == "dram":
        ncu, read = ([], None) if dry else (shlex.split(NCU), read_ncu)
        cases = list(DRAM)[:: 5 if dry else 1]
        return [(case, [*ncu, *python("-m bench.gpu_parts", case)], read) for case in cases]
    if part == "sanitizer":  # once without it, which compiles the kernels
        words, tool = python(CHECKED), shlex.split(SANITIZER)
        tools = [(t, [*tool, *t.split(), *words], read_sanitizer) for t in TOOLS if not dry]
        return [("tests alone", words, None if dry else read_tests), *tools]
    given = args.data_folder or Path("/usr/share/datasets/fashion-mnist").is_dir()  # Debian's
    data = "digits" if dry else args.data or ("fashion-mnist" if given else "digits")
    words = f"bench/study.py --preset small --data {data} --device {device} --only {part} "
    words += "--epochs 1 --limit 64" if dry else "--jobs 2"
    folder = ["--data-folder", str(args.data_folder)] if args.data_folder and not dry else []
    return [(data, python(words, "--out", str(args.out / "study" / data), *folder), None)]


def python(words: str, *more: str) -> list[str]:
    return [sys.executable, *shlex.split(words), *more]


def read_tests(record: dict[str, Any], label: str, text: str) -> None:
    record["figures"].append([label, last := text.strip().splitlines()[-1], ""])
    if " passed" not in last:
        raise Failed("not one test passed, so nothing is shown")


def read_bench(record: dict[str, Any], options: str, text: str) -> None:
    """The JSON begins with a bracket alone in its line; it is kept as ``bench report`` reads it."""
    new, _ = json.JSONDecoder().raw_decode(text, f"\n{text}".index("\n{\n"))
    before = record["data"].get(record["part"], {"results": []})["results"]
    record["data"][record["part"]] = {**new, "results": [*before, *new["results"]]}
    for r in new["results"]:
        if r["contender"] == "lhkernels" and r.get("ratio"):
            figure = f"{r['ms']:.3g} ms, {r['ratio']:.2f} of torch fused, {r['launches']} launches"
            record["figures"].append([r["model"], figure, STEP_MS.get(r["model"], "")])


def elements(case: str) -> int:
    """Of the one tensor of a case of DRAM."""
    return 1024 * (121_523 if "GPT-2 small" in case else 2**19)


def take_steps(case: str) -> None:
    """Step one large tensor, at last in ncu's range; without a GPU, a small one."""
    import torch

    from lhkernels import ScaleAmendedSGD

    name, dtype, *_ = case.split(", ")
    options: dict[str, Any] = {"lr": 1e-3, "momentum": 0.0 if "no momentum" in case else 0.9}
    options |= {"weight_decay": 1e-4, "foreach" if "foreach" in case else "fused": True}
    if "float32 momentum" in case:
        options["momentum_dtype"] = torch.float32
    on_gpu = torch.cuda.is_available()
    size, device = ((elements(case) // 1024, 1024), "cuda") if on_gpu else ((16, 1024), "cpu")
    p = torch.randn(size, device=device, dtype=getattr(torch, dtype)) / 50
    p.grad = torch.randn_like(p) / 1000
    opt = (ScaleAmendedSGD if name == "ours" else torch.optim.SGD)([p], **options)
    for _ in range(3):  # they make buffers, tables, compiled kernels, norms
        opt.step()
    with torch.cuda.profiler.profile() if on_gpu else contextlib.nullcontext():
        for _ in range(STEPS):
            opt.step()
        if on_gpu:
            torch.cuda.synchronize()


def read_ncu(record: dict[str, Any], case: str, text: str) -> None:
    """Bytes per element and step, of all kernels together, and their time."""
    sums = {READ: 0.0, WRITTEN: 0.0, TIME: 0.0}
    kernels = []
    for row in csv.DictReader(line for line in text.splitlines() if line.startswith('"')):
        metric, value, unit = (row[f"Metric {key}"] for key in ("Name", "Value", "Unit"))
        kernels += [row["Kernel Name"][:80]] * (metric == TIME)
        try:
            sums[metric] += float(value.replace(",", "")) * UNITS[unit] / STEPS
        except (KeyError, ValueError) as error:
            raise Failed(f"ncu gave {value!r} {unit!r} for {metric}") from error
    if not all(sums.values()):
        raise Failed(f"ncu counted nothing: {sums} of {kernels}")
    read, written = sums[READ] / elements(case), sums[WRITTEN] / elements(case)
    ms, rate = 1e3 * sums[TIME], (sums[READ] + sums[WRITTEN]) / sums[TIME] / 1e12
    record["data"][case] = {"read": read, "written": written, "ms": ms, "kernels": kernels}
    figure = f"{read + written:.2f} bytes an element, {read:.2f} read; {ms:.3g} ms, {rate:.3g} TB/s"
    record["figures"].append([case, figure, DRAM[case]])


def read_sanitizer(record: dict[str, Any], tool: str, text: str) -> None:
    """Errors by kernel: those in this package's kernels, or in none that is named, are failures."""
    counts = re.findall(r"(?:ERROR SUMMARY: |displayed \()(\d+) error", text)
    if not counts:
        raise Failed(f"no summary, so it proves nothing; it ends with {text[-300:]!r}")
    errors = max(map(int, counts))
    kernels = Counter(re.findall(r"[\w:]+(?=[<(]|$)", place)[0] for place in PLACE.findall(text))
    record["data"][tool] = {"errors": errors, "kernels": kernels}
    record["figures"].append([tool, f"{errors} errors {dict(kernels) or ''}", "0 in our kernels"])
    if OURS & kernels.keys() or errors > kernels.total():
        raise Failed(f"{errors} errors, by kernel: {dict(kernels)}")


if __name__ == "__main__":
    take_steps(sys.argv[1])
