"""What each part runs. Times are limits; docs/gpu.md says what to expect."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_parts import ncu, sanitizer
from gpu_parts.predictions import BYTES
from gpu_parts.runner import ROOT, Context, Failed, OutOfTime, Part, Unavailable

# Compiled for the GPU, where they take CUDA tensors; the rest of the suite runs on every machine.
KERNEL_TESTS = ["tests/step", "tests/test_optim_numbers.py", "tests/test_optim_amp.py"]
STUDY = ("figure1", "heatmap", "heatmap-no-decay", "width", "depth")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
OPTIONS: dict[str, Any] = {"data": None, "jobs": 2}
"""Of the study; ``bench/gpu.py``'s arguments replace them."""


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
    bad = []
    for name, selection in selections.items():
        report = context.path(f"{name.replace(' ', '-')}.xml")
        report.unlink(missing_ok=True)
        args = ["-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider"]
        status = context.execute([sys.executable, *args, f"--junitxml={report}", *selection])
        if not report.exists():
            raise Failed(f"pytest exited with {status}: {context.last_line()}")
        context.data[name] = counts = parse_junit(report.read_text())
        if status not in (0, 5) or counts["failed"]:  # 5: nothing was selected
            bad.append(f"{name}: {counts['failed']} of {counts['tests']} failed")
        if not dry and name == "kernel" and not counts["passed"]:
            bad.append("kernel: not one test passed, so nothing is shown")
    context.collect(bad)


def parse_junit(text: str) -> dict[str, Any]:
    """Counts of pytest's XML report, and the names of what failed."""
    cases = list(ElementTree.fromstring(text).iter("testcase"))
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
    spilled = [str(row["kernel"]) for row in rows if row["spill_bytes"]]
    context.collect([f"{name} spills registers" for name in spilled])


def step(context: Context) -> None:
    """Step times beside torch's and other peers'; the 1 B and 7 B models in bfloat16."""
    small = ["--models", "vgg13", "--seconds", "0.1", "--contenders", "torch fused;lhkernels"]
    options = small if context.dry_run else ["--seconds", "8"]
    command = ("-m", "lhkernels", "bench", "step", "--json", "--device", context.device, *options)
    problems: list[str] = []
    try:
        context.data["step"] = context.python_json(*command, limit=0.6 * context.left)
    except Failed as error:  # the peers don't depend on it
        problems.append(str(error))
    context.data["peers"] = context.driver("peers", env=on_cpu(context))
    context.collect(problems)


def dram(context: Context) -> None:
    """DRAM bytes per element of a step of one large tensor, counted by ncu."""
    cases = context.data["cases"] = {}
    problems: list[str] = []
    program = None if context.dry_run else ncu.find()
    for case in BYTES:
        target = context.path("one-step.json")
        log = context.path("ncu.csv")
        for path in (target, log):
            path.unlink(missing_ok=True)
        driver = ["-m", "gpu_parts.drivers.one_step", "--json", str(target), "--case", case]
        if program is None:
            context.python(*driver, "--dry-run", env=interpreted())
            cases[case] = {"kernels": None}
            continue
        status = context.execute(ncu.command(program, log, [sys.executable, *driver]))
        try:
            kernels = ncu.parse(log.read_text() if log.exists() else "")
            if status or not target.exists():
                raise Failed(f"ncu exited with {status}: {context.last_line()}")
            ran = json.loads(target.read_text())
            cases[case] = ncu.per_element(kernels, ran["elements"], ran["steps"])
        except Unavailable:
            raise
        except Failed as error:  # the other cases may do
            problems.append(f"{case}: {error}")
    context.collect(problems)


def sanitize(context: Context) -> None:
    """compute-sanitizer's tools on small steps of every kind."""
    results = context.data["tools"] = {}
    if context.dry_run:
        context.data["driver"] = context.driver("small_steps", env=interpreted())
        return
    program = ncu.find("compute-sanitizer")
    # Once without it, so that all kernels are compiled and the numbers known to be right.
    context.data["driver"] = context.driver("small_steps")
    problems: list[str] = []
    for tool in sanitizer.TOOLS:
        log, target = context.path(f"{tool}.txt"), context.path(f"{tool}.json")
        log.unlink(missing_ok=True)
        driver = [sys.executable, "-m", "gpu_parts.drivers.small_steps", "--json", str(target)]
        # Without torch's pool every tensor has an allocation of its own, with bounds to check.
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = sanitizer.command(program, tool, log, driver)
        try:
            # One slow tool must leave time for the next.
            status = context.execute(command, env=env, limit=max(60.0, 0.5 * context.left))
            text = log.read_text(errors="replace") if log.exists() else ""
            found = results[tool] = sanitizer.parse(tool, text)
            if found["in_ours"] or found["unattributed"]:
                problems.append(f"{tool}: {found['errors']} errors: {found['kinds']}")
            elif status and not found["errors"]:
                problems.append(f"{tool}: the driver exited with {status}: {context.last_line()}")
        except Unavailable:
            raise
        except Failed as error:
            if isinstance(error, OutOfTime) and context.left <= 0:
                raise
            problems.append(f"{tool}: {error}")
    context.collect(problems)


def hvp(context: Context) -> None:
    """Batched Hessian-vector products beside the usual ways."""
    from lhkernels.benchmarks.hvp_cases import CASES

    small = ["--seconds", "0.01", "--cases", next(iter(CASES)), "--no-memory"]
    small += ["--contenders", "lhkernels"]
    options = small if context.dry_run else ["--seconds", "5"]
    context.data["hvp"] = context.python_json(
        "-m", "lhkernels", "bench", "hvp", "--device", context.device, "--json", *options
    )


def scaling(context: Context) -> None:
    """How cost grows with tensors, elements, vectors and the batch."""
    small = [
        "--seconds",
        "0.01",
        "--parts",
        "step-elements",
        "--max-elements",
        "10000",
        "--passes",
        "1",
    ]
    options = small if context.dry_run else ["--plots", str(context.out / "plots")]
    context.data["scaling"] = context.python_json(
        "-m", "lhkernels", "bench", "scaling", "--device", context.device, "--json", *options
    )


def study(name: str) -> Callable[[Context], None]:
    """One part of the training study; finished runs are kept, and a second call goes on."""

    def run(context: Context) -> None:
        script = ROOT / "bench" / "study.py"
        if not script.exists():
            raise Unavailable("bench/study.py is not there")
        data, folder, note = data_set(context)
        args = ["--preset", "small" if context.dry_run else "full", "--data", data]
        args += [*folder, "--device", context.device, "--only", name]
        # A folder for each data set: a summary is of one.
        args += ["--out", str(context.out / "study" / data), "--jobs", str(OPTIONS["jobs"])]
        if context.dry_run:
            args += ["--epochs", "1", "--limit", "64", "--minutes", "0.02"]
        else:  # ends by itself, runs and summary saved, before it is stopped
            args += ["--minutes", f"{max(context.left - 45, 5) / 60:.2f}"]
        context.data |= {"data": data, "note": note, "out": f"study/{data}"}
        status = context.execute([sys.executable, script, *args])
        summary = context.out / "study" / data / "summary.md"
        context.data["summary"] = summary.read_text() if summary.exists() else ""
        if status == 1 and context.dry_run:  # runs are lacking: the time was meant to be short
            return
        if status == 1:
            raise OutOfTime(f"{name} lacks runs; the same command goes on: {context.last_line()}")
        if status:
            raise Failed(f"bench/study.py exited with {status}: {context.last_line()}")

    return run


def data_set(context: Context) -> tuple[str, list[str], str]:
    """The study's data set, the option that says where it is, and a remark."""
    if context.dry_run:
        return "digits", [], "dry run: scikit-learn's digits"
    name = OPTIONS["data"]
    if context.data_folder is not None:
        return name or "fashion-mnist", ["--data-folder", str(context.data_folder)], ""
    if name:
        return name, [], ""
    if FASHION_MNIST.is_dir():
        return "fashion-mnist", [], ""
    return "digits", [], "no --data-folder: scikit-learn's digits, 1797 images of 8x8, instead"


def driver(
    name: str, environment: Callable[[], dict[str, str]] | None = None
) -> Callable[[Context], None]:
    """A part that is one driver; in a dry run, with this environment."""

    def run(context: Context) -> None:
        env = environment() if environment and context.dry_run else None
        context.data |= context.driver(name, env=env)

    return run


def interpreted() -> dict[str, str]:
    """In a dry run the Triton step takes CPU tensors, interpreted."""
    return {"LHKERNELS_FUSED_BACKEND": "triton"}


def compilable() -> dict[str, str]:
    """Dynamo can't trace Triton's interpreter: the C++ step, in a dry run."""
    return {"TRITON_INTERPRET": "0", "LHKERNELS_FUSED_BACKEND": ""}


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
        Part("dram", "DRAM bytes per element, by ncu", 420, dram),
        Part("sanitizer", "compute-sanitizer on the step", 480, sanitize),
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
