"""Show kept results as Markdown tables and pictures.

All tables are printed, or updated in Markdown files between the lines

    <!-- bench:TABLE [MACHINE] -->
    <!-- /bench:TABLE -->

Tables: step, hvp, hvp-all, slopes, norms, spectrum. The machine, a folder of --results, is needed
where several have such a file. Below a table stand the command that makes its figures, the hardware
and the file that they come from.
"""

import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import hvp, norms, scaling, step
from bench.common import RESULTS
from lhkernels.cli.errors import CommandError, writing

OPENING = re.compile(r"<!-- bench:[\w-]+")
MARKED = re.compile(r"(<!-- bench:([\w-]+)(?: ([\w.-]+))? -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)
TURNS = "medians over rounds in alternation"
TABLES: dict[str, tuple[str, Any, str]] = {  # the kind of their results, layout, a note
    "step": ("step", step.compared, f"rows below the first are time relative to it, {TURNS}"),
    "hvp": ("hvp", hvp.best_peers, "fresh: a new operator and its first product, again: one more; "
            f"speed-ups are {TURNS}, against the best peer of each kind"),
    "hvp-all": ("hvp", hvp.every_block, f"speed-ups are against the best peer, {TURNS}"),
    "slopes": ("scaling", scaling.exponents, "least squares, log-log, over the upper end: the last "
               "three points, of tensors the last two"),
    "norms": ("norms", norms.markdown, "each timed alone"),
    "spectrum": ("spectrum", norms.markdown, "each timed alone"),
}  # fmt: skip


def add_options(parser: Any) -> None:
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    add("--machine", help="a folder of DIR (default: all)")
    files = "the files (default: README.md docs/*.md)"
    add("--write", nargs="*", metavar="FILE", help=f"update {files}")
    add("--check", nargs="*", metavar="FILE", help=f"fail if one is stale of {files}")
    add("--plots", type=Path, metavar="DIR", help="draw roofline.png and scaling-*.png there")
    add("--json", action="store_true", help="print the tables as JSON")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Print, write or check; status 1 if a file is stale."""
    if not args.results.is_dir():
        raise CommandError(f"--results {args.results} is no folder; `make bench` fills {RESULTS}")
    if args.machine is not None and not (args.results / args.machine).is_dir():
        there = ", ".join(sorted(p.name for p in args.results.iterdir() if p.is_dir()))
        raise CommandError(f"--machine {args.machine} has no results; there are {there}")
    if args.plots is not None:
        with writing("--plots", args.plots):
            draw(args.results, args.machine, args.plots)
    stale = [path for path, text, new in pages(args.check, args.results) if new != text]
    for path in stale:
        print(f"{path} is stale; `bench report --write` updates it", file=sys.stderr)
    for path, text, new in pages(args.write, args.results):
        if new != text:
            with writing("--write", path):
                path.write_text(new)
        changed = "updated" if new != text else "unchanged"
        print(f"{path}: {len(OPENING.findall(text))} table(s), {changed}")
    if args.check is None and args.write is None and (args.plots is None or args.json):
        show(args.results, args.machine, args.json)
    return int(bool(stale))


def pages(files: list[str] | None, results: Path) -> Iterator[tuple[Path, str, str]]:
    """A file, its text, and its text with every marked table made anew, for all that have one."""
    every = sorted(Path().glob("README.md")) + sorted(Path("docs").glob("*.md"))
    for path in every if files == [] else map(Path, files or ()):
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{path} can't be read: {error}") from error
        if OPENING.search(text):
            try:
                yield path, text, filled(text, results, path.parent)
            except CommandError as error:
                raise CommandError(f"{path}: {error}") from error


def filled(text: str, results: Path, base: Path) -> str:
    opened, matched = len(OPENING.findall(text)), len(MARKED.findall(text))
    if opened != matched:
        raise CommandError(
            f"{opened} tables are opened, but {matched} of them well: each needs "
            "`<!-- bench:NAME [MACHINE] -->` and `<!-- /bench:NAME -->` on lines of their own"
        )
    return MARKED.sub(lambda m: m[1] + render(m[2], results, m[3], base) + m[4], text)


def render(table: str, results: Path, machine: str | None, base: Path) -> str:
    """The table in Markdown, its sources below; ``base`` is the folder that links start from."""
    if table not in TABLES:
        raise CommandError(f"unknown table {table!r}; there are {', '.join(TABLES)}")
    kind, layout, note = TABLES[table]
    command = f"python -m lhkernels bench {kind}"
    path, report = read(kind, results, machine)
    try:
        body, about = layout(report["results"]), report["environment"]
        where = "{device}, {threads} threads, torch {torch}, {date:.10}".format(**about)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CommandError(
            f"{path} is not what `{command}` writes ({type(error).__name__}: {error}); run it again"
        ) from error
    raw = Path(os.path.relpath(path, base)).as_posix()
    return f"{body}\n\n<sub>`{command}`: {note}; {where} ([raw]({raw}))</sub>\n"


def read(kind: str, results: Path, machine: str | None) -> tuple[Path, dict[str, Any]]:
    """The one file of that kind, of the machine if it is named; alone or a part of ``make gpu``."""
    found = sorted(results.glob(f"{machine or '*'}/{kind}.json"))
    where = f"{results}/{machine or '<machine>'}/{kind}.json"
    if not found:
        command = f"python -m lhkernels bench {kind}"
        raise CommandError(f"there is no {where}; `{command}` writes it (with --save)")
    if len(found) > 1:
        machines = ", ".join(path.parent.name for path in found)
        raise CommandError(f"several machines have {where}: name one of {machines}")
    try:
        report = json.loads(found[0].read_text())
        return found[0], report["data"][report["part"]] if "part" in report else report
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{found[0]} is no result of a benchmark ({error!r}); run it again"
        raise CommandError(text) from error


def show(results: Path, machine: str | None, as_json: bool) -> None:
    """All tables there are results for."""
    shown = [
        {"table": table, "machine": name, "markdown": render(table, results, name, Path())}
        for table, (kind, *_) in TABLES.items()
        for name in sorted(p.parent.name for p in results.glob(f"{machine or '*'}/{kind}.json"))
    ]
    if not shown:
        raise CommandError(f"there are no results in {results}; `make bench` makes them")
    text = "\n<!-- bench:{table} {machine} -->\n{markdown}<!-- /bench:{table} -->"
    print(json.dumps(shown, indent=2) if as_json else "\n".join(text.format(**t) for t in shown))


def draw(results: Path, machine: str | None, folder: Path) -> None:
    """The roofline and the growth of cost, of the one machine that is named or has them."""
    from bench import plots

    drawn: list[Path] = []
    for kind, pictures in (("step", plots.draw_roofline), ("scaling", plots.draw_scaling)):
        if any(results.glob(f"{machine or '*'}/{kind}.json")):
            drawn += pictures(read(kind, results, machine)[1], folder)
    if not drawn:
        raise CommandError(
            f"there is no step.json or scaling.json in {results}; run `bench step --save` and "
            "`bench scaling --save`"
        )
    print("\n".join(f"drawn: {path}" for path in drawn))
