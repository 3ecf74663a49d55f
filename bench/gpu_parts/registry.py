"""What each part runs. Times are limits; docs/gpu.md says what to expect."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

from gpu_parts import ncu, sanitizer
from gpu_parts.dry import compilable, interpreted
from gpu_parts.runner import ROOT, Context, Failed, Part, Unavailable
from gpu_parts.study import STUDY, study

# Compiled for the GPU, where they take CUDA tensors; the rest of the suite runs on every machine.
KERNEL_TESTS = ["tests/step", "tests/test_optim_numbers.py", "tests/test_optim_amp.py"]


def tests(context: Context) -> None:
    """The step's tests, compiled, and every test marked gpu."""
    dry = context.dry_run
    selections = {"kernel": ["tests/step/test_triton_gpu.py"] if dry else KERNEL_TESTS}
    marked = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text() and path.parent.name != "step"
    ]
    if marked and not dry:
        selections["marked gpu"] = ["-m", "gpu", *marked]
    for name, selection in selections.items():
        with context.attempt(name):
            select_and_test(context, name, selection)


def select_and_test(context: Context, name: str, selection: list[str]) -> None:
    """Run pytest on a selection, and keep its counts."""
    report = context.path(f"{name.replace(' ', '-')}.xml")
    report.unlink(missing_ok=True)
    args = ["-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider"]
    status: int | None = None
    try:
        status = context.execute([sys.executable, *args, f"--junitxml={report}", *selection])
    finally:  # out of time, too: pytest is interrupted, and reports what it has run
        if report.exists():
            context.data[name] = parse_junit(report.read_text(), interrupted=status is None)
    counts = context.data.get(name)
    if counts is None:
        raise Failed(f"pytest exited with {status}: {context.last_line()}")
    if counts["failed"]:
        raise Failed(f"{counts['failed']} of {counts['tests']} failed")
    if status not in (0, 5):  # 5: nothing was selected
        raise Failed(f"pytest exited with {status}: {context.last_line()}")
    if not context.dry_run and name == "kernel" and not counts["passed"]:
        raise Failed("not one test passed, so nothing is shown")


def parse_junit(text: str, *, interrupted: bool = False) -> dict[str, Any]:
    """Counts of pytest's XML report, and the names of what failed.

    Args:
        interrupted: the test that ran then is in the report as if it had passed; it is left out.
    """
    cases = list(ElementTree.fromstring(text).iter("testcase"))
    if interrupted and cases and len(cases[-1]) == 0:
        cases.pop()
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    counts = {"tests": len(cases), "passed": passed, "skipped": skipped, "failed": len(failed)}
    return {**counts, "failures": failed}


def asm(context: Context) -> None:
    """Registers, spills and access widths of the kernel for this GPU or the nearest one below."""
    import torch

    from lhkernels.asm import ARCHS

    major, minor = (9, 0) if context.dry_run else torch.cuda.get_device_capability()
    fitting = [arch for arch in ARCHS if arch <= 10 * major + minor]
    if not fitting:
        raise Unavailable(f"sm_{major}{minor} is older than any of sm_{min(ARCHS)} and newer")
    arch = str(max(fitting))
    dtype = ["--dtype", "float32"] if context.dry_run else []
    # Compiling needs no GPU, but can't be interpreted.
    env = {"TRITON_INTERPRET": "0"}
    rows = context.python_json("-m", "lhkernels", "asm", "--arch", arch, "--json", *dtype, env=env)
    context.data |= {"arch": int(arch), "kernels": rows}
    spilled = sorted({str(row["kernel"]) for row in rows if row["spill_bytes"]})
    if spilled:
        raise Failed(f"{' and '.join(spilled)} spill registers")


def step(context: Context) -> None:
    """Step times beside torch's and other peers'; the 1 B and 7 B models in bfloat16."""
    from bench.shapes import CPU_MODELS, LARGE_MODELS

    groups = ["vgg13"] if context.dry_run else [",".join(CPU_MODELS), *LARGE_MODELS]
    small = ["--seconds", "0.1", "--contenders", "torch fused;lhkernels"]
    options = small if context.dry_run else ["--seconds", "8"]
    command = ("-m", "lhkernels", "bench", "step", "--json", "--device", context.device, *options)
    found: dict[str, Any] = {"results": []}
    for models in groups:  # a process each, so that one without memory or time costs no other
        with context.attempt(models):
            new = context.python_json(*command, "--models", models, limit=0.5 * context.left)
            found = {**new, **found, "results": found["results"] + new["results"]}
            context.data["step"] = found
    with context.attempt("peers"):
        context.driver("peers", context.data.setdefault("peers", {}), env=on_cpu(context))


def hvp(context: Context) -> None:
    """Batched Hessian-vector products beside the usual ways."""
    from bench.blocks import CASES

    small = ["--seconds", "0.01", "--cases", next(iter(CASES)), "--no-memory"]
    small += ["--contenders", "lhkernels"]
    options = small if context.dry_run else ["--seconds", "5"]
    context.data["hvp"] = context.python_json(
        "-m", "lhkernels", "bench", "hvp", "--device", context.device, "--json", *options
    )


def scaling(context: Context) -> None:
    """How cost grows with tensors, elements, vectors and the batch."""
    small = ["--seconds", "0.01", "--parts", "step-elements", "--max-elements", "10000"]
    small += ["--passes", "1"]
    options = small if context.dry_run else ["--plots", str(context.out / "plots")]
    context.data["scaling"] = context.python_json(
        "-m", "lhkernels", "bench", "scaling", "--device", context.device, "--json", *options
    )


def driver(
    name: str, environment: Callable[[], dict[str, str]] | None = None
) -> Callable[[Context], None]:
    """A part that is one driver; in a dry run, with this environment."""

    def run(context: Context) -> None:
        env = environment() if environment and context.dry_run else None
        context.driver(name, context.data, env=env)

    return run


def on_cpu(context: Context) -> dict[str, str] | None:
    return compilable() if context.dry_run else None


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("tests", "tests of the step, compiled, and tests marked gpu", 420, tests),
        Part("asm", "the kernel's registers, spills and access widths", 180, asm),
        Part("step", "step times beside peers', up to 7 B parameters", 420, step),
        Part("launches", "kernels and copies per step, from a trace", 120,
             driver("launches", interpreted)),
        Part("dram", "DRAM bytes per element, by ncu", 420, ncu.part),
        Part("sanitizer", "compute-sanitizer on the step", 480, sanitizer.part),
        Part("share", "the step's share of a training step", 240, driver("share", compilable)),
        Part("graph", "a training step in a CUDA graph", 120, driver("graphs", interpreted)),
        Part("compile", "torch.compile of the step", 300, driver("compiled", compilable)),
        Part("hvp", "batched Hessian-vector products", 420, hvp),
        Part("scaling", "how cost grows with size", 420, scaling),
        *(Part(name, f"training study: {name}", 540, study(name)) for name in STUDY),
    )
}  # fmt: skip
GROUPS = {
    "study": list(STUDY),
    "quick": ["asm", "launches", "graph", "compile", "share"],
    "bench": ["step", "hvp", "scaling"],
}


def select(text: str | None) -> list[Part]:
    """Parts by name, ``a,b``; groups stand for their parts; None for all.

    Raises:
        ValueError: a name that is neither.
    """
    names: list[str] = []
    for name in (word.strip() for word in text.split(",")) if text else PARTS:
        if name not in PARTS and name not in GROUPS:
            raise ValueError(
                f"--parts {name!r} is unknown; choose of {', '.join([*PARTS, *GROUPS])}"
            )
        names += [n for n in GROUPS.get(name, [name]) if n not in names]
    return [PARTS[name] for name in names]
