"""Everything that needs a GPU: its tests, the step's times; results in bench/results/<device>/.

    python bench/gpu.py [tests] [asm] [step] [--dry-run]

Without a part's name all parts run, each well under 10 minutes. ``--dry-run`` goes the same way on
a CPU: tests under Triton's interpreter, a small model, results in a temporary folder. Needs no
network and no installation of this package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

GPU_TESTS = ["tests/step", "tests/test_optim_numbers.py", "tests/test_optim_amp.py"]


def run(args: list[str], *, interpret: bool, log: Path) -> int:
    """A Python command from the root; what it prints goes to the terminal and to ``log``."""
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "TRITON_INTERPRET": "1" if interpret else "0",
    }
    command = [sys.executable, *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    log.write_text(done.stdout)
    print(done.stdout + done.stderr)
    return done.returncode


def tests(out: Path, dry: bool) -> int:
    """The kernel's tests, compiled; the rest of the suite runs everywhere."""
    selection = ["tests/step/test_triton_gpu.py"] if dry else GPU_TESTS
    args = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *selection]
    return run(args, interpret=dry, log=out / "tests.txt")


def asm(out: Path, dry: bool) -> int:
    """Registers, spills and access widths of the kernel for this GPU."""
    major, minor = (9, 0) if dry else torch.cuda.get_device_capability()
    arch = str(10 * major + minor)
    return run(["-m", "lhkernels", "asm", "--arch", arch], interpret=False, log=out / "asm.txt")


def step(out: Path, dry: bool) -> int:
    """Step times beside torch's: ratios, GB/s against a measured copy, launches a step."""
    args = ["-m", "lhkernels", "bench", "step", "--json"]
    args += ["--models", "vgg13", "--seconds", "1"] if dry else ["--device", "cuda"]
    status = run(args, interpret=False, log=out / "step.json")
    if status == 0:
        summarise(json.loads((out / "step.json").read_text()), out / "step.md")
    return status


def summarise(report: dict, path: Path) -> None:
    """The results as a table in Markdown."""
    environment = report["environment"]
    shown = ("device", "torch", "torch's CUDA", "triton", "date")
    lines = [
        ", ".join(f"{key}: {environment[key]}" for key in shown),
        "",
        "| model | optimizer | ms | ratio | GB/s | /copy | launches |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in report["results"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(
            f"| {r['model']} | {r['contender']} | {r['ms']:.3f} | {ratio} | {r['gb_per_s']:.0f} "
            f"| {r['of_copy']:.2f} | {r['launches'] or ''} |"
        )
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


PARTS = {"tests": tests, "asm": asm, "step": step}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="go the same way on a CPU")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {unknown.pop()}; choose of {', '.join(PARTS)}")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --dry-run goes the same way on a CPU")
    if args.dry_run:
        out = Path(tempfile.mkdtemp(prefix="lhkernels-gpu-"))
    else:
        device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        out = ROOT / "bench" / "results" / device
        out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in args.parts or PARTS if PARTS[name](out, args.dry_run) != 0]
    print(f"results in {out}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
