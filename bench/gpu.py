"""Everything that needs a GPU, in parts with a time limit each: tests, times, counters, the study.

    python bench/gpu.py [PART ...] [--list] [--dry-run] [--out DIR] [--data-folder DIR] [--total S]

Writes PART.json and PART.log for each part, environment.json and summary.md to --out (default:
bench/results/<device>/). A part that is ok there, with this code on this device, is run again only
if it is named. Needs no network and no installation; docs/gpu.md says what the parts measure.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu_parts import GROUPS, PARTS, STUDY, Failed, jobs  # noqa: E402

GRACE = 5.0  # seconds that a process has to end by itself, once interrupted and once terminated
TOOLS = ("ncu", "compute-sanitizer")
REFUSAL = re.compile(  # what they say where they can't work at all
    r"^==.*(?:ERR_NVGPUCTRPERM|LibraryNotLoaded|not compatible with Nsight|Failed to initialize|"
    r"Device not supported|injection library|before first instrumented API call).*$", re.MULTILINE,
)  # fmt: skip
SMI = (
    "timeout 30 nvidia-smi --format=csv --query-gpu=driver_version,clocks.sm,clocks.mem,"
    "clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,mig.mode.current"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; 1 if one of them is not ok."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("names", nargs="*", metavar="PART", help="parts or groups (default: all)")
    p.add_argument("--parts", metavar="A,B", default="", help="as PART ...")
    p.add_argument("--list", action="store_true", help="list the parts and their time limits")
    p.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: does it run?")
    p.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    p.add_argument("--data-folder", "--data-dir", type=Path, metavar="DIR", help="its files")
    p.add_argument("--data", metavar="NAME", help="the study's data set (default: fashion-mnist)")
    p.add_argument("--total", type=float, default=math.inf, metavar="S", help="seconds for all")
    args = p.parse_args(argv)
    named = ",".join([*args.names, args.parts]).replace(",", " ").split()
    for name in named:
        if name not in PARTS and name not in GROUPS:
            p.error(f"--parts {name!r} is unknown; choose of {', '.join([*PARTS, *GROUPS])}")
    if not args.total > 0:
        p.error(f"--total {args.total} is not > 0")
    if args.data_folder and not args.data_folder.is_dir():
        p.error(f"--data-folder {args.data_folder} is no folder; it holds a data set's files")
    if args.list:
        print(*(f"{name:18}{s:4} s  {what}" for name, (s, what) in PARTS.items()), sep="\n")
        print(*(f"{name:18} stands for {', '.join(GROUPS[name])}" for name in GROUPS), sep="\n")
        return 0
    named = [part for name in named for part in GROUPS.get(name, (name,))]
    return run_all(named, args, environment(p, args))


def environment(p: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """What figures must be read with; --out is made, and ``args.stamp`` of code and device set."""
    import torch

    from lhkernels import environment

    if not (args.dry_run or torch.cuda.is_available()):
        p.error("torch finds no CUDA device; --dry-run goes the same way on a CPU")
    device = torch.device("cpu" if args.dry_run else "cuda")
    if args.out is None and args.dry_run:
        args.out = Path(tempfile.mkdtemp(prefix="lhkernels-gpu-"))
    args.out = (args.out or ROOT / "bench" / "results" / environment.machine(device)).resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    args.data_folder = args.data_folder and args.data_folder.resolve()
    dry = load(args.out / "environment.json").get("dry run", args.dry_run)
    if dry != args.dry_run:  # a CPU's figures must not pass for a GPU's
        p.error(f"--out {args.out} holds results of a {'dry run' if dry else 'GPU'}; name another")
    about = {**environment.describe(device), "dry run": args.dry_run}
    if not args.dry_run:
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        about |= {"L2, MiB": l2 / 2**20, "nvidia-smi, before": subprocess.getoutput(SMI)}
    sources = sorted(p for d in ("lhkernels", "bench", "tests") for p in ROOT.glob(f"{d}/**/*.py"))
    code = hashlib.sha1(b"".join(path.read_bytes() for path in sources))
    args.stamp = [code.hexdigest()[:12], about["device"]]
    return about


def run_all(named: list[str], args: argparse.Namespace, about: dict[str, Any]) -> int:
    """Run parts in order; what there is, is on disk after each of them."""
    until = time.monotonic() + args.total
    bad = []
    for part in dict.fromkeys(named or PARTS):
        kept = load(args.out / f"{part}.json")
        same = kept.get("status") == "ok" and kept.get("stamp") == args.stamp
        if same and not named and part not in STUDY:  # which looks itself for what is missing
            print(f"[{part}] is ok already; name it to run it again", flush=True)
            continue
        limit = min(PARTS[part][0], until - time.monotonic())
        print(f"[{part}] {PARTS[part][1]}: {max(limit, 0):.0f} s at most", flush=True)
        record = {"status": "out of time", "message": "none was left"}
        if limit > 0:
            try:
                record = run_part(part, args, limit)
            finally:  # interrupted, too
                about["nvidia-smi, after"] = "" if args.dry_run else subprocess.getoutput(SMI)
                write(args.out / "environment.json", json.dumps(about, indent=1))
                write(args.out / "summary.md", summary(about, args.out))
        print(f"[{part}] {record['status']} {record['message']}", flush=True)
        bad += [part] * (record["status"] != "ok")
    print(f"results: {args.out}" + f"; NOT OK: {', '.join(bad)}" * bool(bad))
    return 1 if bad else 0


def run_part(part: str, args: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run a part's commands and write PART.json, whatever happens to them."""
    deadline = time.monotonic() + limit
    log = args.out / f"{part}.log"
    log.unlink(missing_ok=True)
    record: dict[str, Any] = {"part": part, "stamp": args.stamp, "commands": [], "data": {}}
    record |= {"figures": [], "status": "failed", "message": "interrupted"}
    problems: dict[str, str] = {}  # status by message
    try:
        work = jobs(part, args)
        for number, (label, words, read) in enumerate(work, 1):
            left = deadline - time.monotonic()
            seconds = left if number == len(work) else left / 2  # if it hangs, the others have time
            record["commands"].append(shlex.join(words).replace(sys.executable, "python"))
            try:
                said = execute(words, seconds, log, args.dry_run)
                if read is not None:
                    read(record, label, said)
            except Failed as error:
                problems[f"{label}: {error}"] = error.status
                if error.status == "unavailable":
                    break  # what a tool refuses once, it refuses always
            except Exception as error:  # one part's mistake must not cost the others their results
                problems[f"{label}: {error!r}"] = "failed"
        worst = ("out of time", "failed", "unavailable")
        record["status"] = next((s for s in worst if s in problems.values()), "ok")
        record["message"] = "; ".join(problems)
    finally:  # interrupted, too
        record["seconds"] = round(limit - (deadline - time.monotonic()), 1)
        write(args.out / f"{part}.json", json.dumps(record, indent=1))
    return record


def execute(words: list[str], seconds: float, log: Path, dry_run: bool) -> str:
    """Run a command from the root, and return what it printed, if it ended well and in time."""
    if seconds <= 0:
        raise Failed("no time was left", "out of time")
    tool = next((word for word in words if word in TOOLS), None)
    if tool and not shutil.which(tool):
        raise Failed(f"{tool} is not on PATH; it comes with the CUDA toolkit", "unavailable")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0"}
    env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if dry_run else {}
    with log.open("a") as file:
        print("$", shlex.join(words), file=file, flush=True)
        start = file.tell()
        process = subprocess.Popen(
            words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"stopped after {seconds:.0f} s", "out of time") from None
        finally:
            end(process)
    said = log.read_bytes()[start:].decode(errors="replace")
    if tool and (refusal := REFUSAL.search(said)):
        raise Failed(refusal[0], "unavailable")
    if status:
        raise Failed(f"exit status {status}, {said.strip()[-300:]!r}")
    return said


def end(process: subprocess.Popen[Any]) -> None:
    """End a process, which may save what it has if it still runs, and all of its group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None or number == signal.SIGKILL:  # children may outlive it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)


def summary(about: dict[str, Any], out: Path) -> str:
    """The environment, how each part went, and all figures, with what was predicted of them."""
    records = [record for part in PARTS if (record := load(out / f"{part}.json"))]
    keys = ("date", "torch", "torch's CUDA", "triton", "nvidia-smi, before", "nvidia-smi, after")
    lines = [f"# {about['device']}", ""]
    lines += ["**Dry run on a CPU: no figure below means anything.**", ""] * about["dry run"]
    lines += [f"- {key}: {about[key]}".replace("\n", "; ") for key in keys if about.get(key)]
    lines += ["", "| part | status | s | |", "|---|---|---|---|"]
    rows = [[r["part"], r["status"], f"{r['seconds']:.0f}", r["message"]] for r in records]
    rows += [["", "", "", ""], ["**part**", "", "**measured**", "**predicted for an H100**"]]
    rows += [[r["part"], *cells] for r in records for cells in r["figures"]]
    clean = ([c.replace("|", "\\|").replace("\n", " ") for c in cells] for cells in rows)
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in clean)]) + "\n"


def load(path: Path) -> dict[str, Any]:
    """A JSON object; {} where a file is missing or damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    draft.replace(path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
