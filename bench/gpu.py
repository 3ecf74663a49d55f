"""Everything that needs a GPU: tests, times, counters, the training study; a part each.

    python bench/gpu.py [--parts tests,step,...] [--list] [--dry-run] [--out DIR]
                        [--data-folder DIR] [--limit SECONDS] [--total SECONDS]

Writes to --out (default: bench/results/<device>/): PART.json and PART.log for each part,
environment.json, and summary.md from all parts that are there. A part that fails does not stop the
others; the exit status is 1 then. Needs no network and no installation of this package.
docs/gpu.md says what each part measures and how long it takes.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from gpu_parts import environment, registry, runner, study, summary  # noqa: E402

BUILD = 240  # seconds at most for the C++ extension


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("parts_", nargs="*", metavar="PART", help="as --parts")
    p.add_argument("--parts", metavar="A,B", help="parts or groups of parts (default: all)")
    p.add_argument("--list", action="store_true", help="list the parts and their time limits")
    p.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: does it run?")
    p.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    folder = "of the study's data set"
    p.add_argument("--data-folder", "--data-dir", type=Path, metavar="DIR", help=folder)
    p.add_argument("--data", metavar="NAME", help="the study's data set (default: fashion-mnist)")
    p.add_argument("--jobs", type=int, metavar="N", help="the study's runs at a time (default: 2)")
    p.add_argument("--limit", type=float, metavar="S", help="seconds for each part")
    p.add_argument(
        "--total", type=float, metavar="S", help="seconds for all together, the build too"
    )
    p.add_argument("--archive", type=Path, metavar="F.tar.gz", help="also pack the results into F")
    p.add_argument("--no-build", action="store_true", help="leave the C++ extension as it is")
    p.add_argument("--summary", action="store_true", help="only write summary.md anew")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; 1 if one of them is not ok."""
    p = parser()
    args = p.parse_args(argv)
    try:
        parts = registry.select(",".join(filter(None, [args.parts, *args.parts_])) or None)
    except ValueError as error:
        p.error(str(error))
    if args.list:
        print_list()
        return 0
    for name in ("limit", "total", "jobs"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            p.error(f"--{name} {value} is not > 0")
    if args.data_folder is not None:
        args.data_folder = args.data_folder.resolve()
        if not args.data_folder.is_dir():
            p.error(f"--data-folder {args.data_folder} is no folder; it holds a data set's files")
    study.OPTIONS |= {"data": args.data, "jobs": args.jobs or study.OPTIONS["jobs"]}
    out = choose_out(p, args)
    if args.summary:
        print(summary.write(out))
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    return execute(parts, out, args)


def execute(parts: list[runner.Part], out: Path, args: argparse.Namespace) -> int:
    """The environment first, then the parts; the summary is brought up to date after each."""
    start = time.monotonic()
    about = environment.describe(args.dry_run)
    # Only tests need it: on a GPU the step is Triton's.
    build = "tests" in (part.name for part in parts) and not (args.no_build or args.dry_run)
    limit = min(BUILD, args.total / 2) if args.total else BUILD
    about["C++ extension"] = environment.extension(runner.ROOT, build=build, limit=limit)
    total = args.total and max(args.total - (time.monotonic() - start), 0.0)
    about["clocks after"] = None
    runner.write_json(out / "environment.json", about)

    def keep(record: dict[str, Any]) -> None:
        about["clocks after"] = environment.nvidia_smi()
        runner.write_json(out / "environment.json", about)
        summary.write(out)
        if args.archive:
            runner.archive(out, args.archive)

    try:
        records = runner.run_all(
            parts,
            out,
            limit=args.limit,
            total=total,
            after=keep,
            dry_run=args.dry_run,
            data_folder=args.data_folder,
        )
    except (KeyboardInterrupt, SystemExit):
        summary.write(out)
        print(f"interrupted; what there is: {out}", file=sys.stderr)
        return 130
    print((out / "summary.md").read_text())
    bad = [r["part"] for r in records if r["status"] != "ok"]
    print(f"results in {out}" + (f"; NOT OK: {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


def choose_out(p: argparse.ArgumentParser, args: argparse.Namespace) -> Path:
    """The results' folder, made; an error if there is no GPU to name it after."""
    import torch

    from lhkernels.environment import machine

    if args.out is None and args.summary:
        p.error("--summary needs --out, the folder of the results")
    if not (args.dry_run or args.summary or torch.cuda.is_available()):
        p.error("torch finds no CUDA device here; --dry-run goes the same way on a CPU")
    if args.out is not None:
        out = args.out.resolve()
    elif args.dry_run:
        out = Path(tempfile.mkdtemp(prefix="lhkernels-gpu-"))
    else:
        out = runner.BENCH / "results" / machine(torch.device("cuda"))
    out.mkdir(parents=True, exist_ok=True)
    for path in () if args.summary else out.glob("*.json"):
        dry = summary.load(path).get("dry_run")
        if dry is not None and dry != args.dry_run:  # a CPU's figures must not pass for a GPU's
            kind = "a dry run's" if dry else "a GPU's"
            p.error(f"--out {out} holds {kind} results ({path.name}); name another folder")
    return out


def print_list() -> None:
    for part in registry.PARTS.values():
        print(f"{part.name:18}{part.limit:5.0f} s  {part.title}")
    for name, members in registry.GROUPS.items():
        print(f"{name:18}         = {','.join(members)}")


def _terminate(*_: Any) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
