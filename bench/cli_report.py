"""``python -m lhkernels bench report``: kept results as tables and pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.cli_options import RESULTS
from lhkernels.cli.errors import CommandError, writing


def add_kind(kinds: Any) -> None:
    """Register the command."""
    parser = kinds.add_parser(
        "report",
        help="kept results as Markdown tables and pictures",
        description="Print the tables of all kept results; or update them between "
        "'<!-- bench:TABLE [MACHINE] -->' and '<!-- /bench:TABLE -->' in Markdown files. Tables: "
        "step, hvp, hvp-all, slopes, norms, spectrum.",
    )
    parser.add_argument("--results", default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    parser.add_argument("--machine", help="a folder of DIR (default: all)")
    files = "the files (default: README.md docs/*.md)"
    parser.add_argument("--write", nargs="*", metavar="FILE", help=f"update {files}")
    parser.add_argument(
        "--check", nargs="*", metavar="FILE", help=f"fail if one is stale of {files}"
    )
    parser.add_argument("--plots", metavar="DIR", help="draw roofline.png and scaling-*.png there")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print, write or check; status 1 if a file is stale."""
    from bench.report import ReportError

    results = Path(args.results)
    if not results.is_dir():
        raise CommandError(f"--results {results} is no folder; `make bench` fills {RESULTS}")
    if args.machine is not None and not (results / args.machine).is_dir():
        there = ", ".join(sorted(p.name for p in results.iterdir() if p.is_dir()))
        raise CommandError(f"--machine {args.machine} has no results; there are {there}")
    try:
        stale = []
        if args.plots is not None:
            with writing("--plots", Path(args.plots)):
                draw(results, args.machine, Path(args.plots))
        if args.check is not None:
            stale = [path for path, _, new in updated(args.check, results) if new is not None]
            for path in stale:
                print(f"{path} is stale; `bench report --write` updates it", file=sys.stderr)
        if args.write is not None:
            for path, tables, new in updated(args.write, results):
                if new is not None:
                    with writing("--write", path):
                        path.write_text(new)
                print(f"{path}: {tables} table(s), {'updated' if new is not None else 'unchanged'}")
        if args.check is None and args.write is None and (args.plots is None or args.json):
            show(results, args.machine, as_json=args.json)
    except ReportError as error:
        raise CommandError(str(error)) from error
    return 1 if stale else 0


def updated(files: list[str], results: Path) -> list[tuple[Path, int, str | None]]:
    """(file, tables in it, its new text if that differs) for all files that have a table."""
    from bench.report import OPENING, ReportError, filled

    named = [Path(file) for file in files]
    found = []
    for path in named or [Path("README.md"), *sorted(Path("docs").glob("*.md"))]:
        if not path.exists():
            if named:
                raise CommandError(f"there is no file {path}")
            continue
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{path} can't be read: {error}") from error
        tables = len(OPENING.findall(text))
        if tables:
            try:
                new = filled(text, results, path.parent)
            except ReportError as error:
                raise CommandError(f"{path}: {error}") from error
            found.append((path, tables, new if new != text else None))
    return found


def show(results: Path, machine: str | None, *, as_json: bool) -> None:
    """All tables there are results for."""
    from bench import report

    tables = [
        {"table": table, "machine": name, "markdown": report.render(table, results, name, Path())}
        for table, name in report.available(results, machine)
    ]
    if not tables:
        raise CommandError(f"there are no results in {results}; `make bench` makes them")
    if as_json:
        print(json.dumps(tables, indent=2))
        return
    for entry in tables:
        print(f"\n<!-- bench:{entry['table']} {entry['machine']} -->")
        print(f"{entry['markdown']}<!-- /bench:{entry['table']} -->")


def draw(results: Path, machine: str | None, folder: Path) -> None:
    """The roofline and the growth of cost, of the one machine that is named or has them."""
    from bench import plots, report

    drawn = []
    for file in ("step.json", "scaling.json"):
        paths = sorted(results.glob(f"{machine or '*'}/{file}"))
        if len(paths) > 1:
            report.locate(file, results, machine, "")  # says which machines there are
        for path in paths:
            kept = report.read(path)
            if file == "step.json":
                drawn += plots.draw_roofline(kept, folder)
            else:
                drawn += plots.draw_all_scaling(kept, folder)
    if not drawn:
        raise CommandError(
            f"there is no step.json or scaling.json in {results}; run `bench step --save` and "
            "`bench scaling --save`"
        )
    for path in drawn:
        print(f"drawn: {path}")
