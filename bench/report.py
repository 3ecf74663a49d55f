"""Show kept results as Markdown tables and pictures.

All tables are printed, or updated in Markdown files between the lines

    <!-- bench:TABLE [MACHINE] -->
    <!-- /bench:TABLE -->

Tables: step, hvp, hvp-all, slopes, norms, spectrum. The machine, a folder of --results, is needed
where several have such a file. Below stand the command that makes the figures, hardware and file.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from bench import hvp, scaling, step, suite
from bench.common import OURS, RESULTS
from bench.scaling import PARTS, curves, fit
from lhkernels import tables
from lhkernels.cli.errors import CommandError, writing

AGAIN = f"{OURS}, product only"
OURS_STYLE = {"color": "#c1440e", "marker": "s", "ls": "-", "lw": 2.4}
# Light or dark enough to differ in grey.
COLOURS = ("#000000", "#1f6fb2", "#6b6b6b", "#8e5ea2", "#3b8f5a", "#b59a00", "#4d4d4d")
DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
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
    "norms": ("suite", suite.cells, "each timed alone"),
    "spectrum": ("suite", suite.cells, "each timed alone"),
}  # fmt: skip


def add_options(parser: Any) -> None:
    add, files = parser.add_argument, "the files (default: README.md docs/*.md)"
    add("--results", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    add("--machine", help="a folder of DIR (default: all)")
    add("--write", nargs="*", metavar="FILE", help=f"update {files}")
    add("--check", nargs="*", metavar="FILE", help=f"fail if one is stale of {files}")
    add("--plots", type=Path, metavar="DIR", help="draw roofline.png and scaling-*.png there")
    parser.set_defaults(run=run)


def run(args: Any) -> int:
    """Print, write or check; status 1 if a file is stale."""
    results = args.results
    if not results.is_dir():
        raise CommandError(f"--results {results} is no folder; `make bench` fills {RESULTS}")
    if args.machine is not None and not (results / args.machine).is_dir():
        there = ", ".join(sorted(p.name for p in results.iterdir() if p.is_dir()))
        raise CommandError(f"--machine {args.machine} has no results; there are {there}")
    if args.plots is not None:
        with writing("--plots", args.plots):
            draw(results, args.machine, args.plots)
    stale = [path for path, text, new in pages(args.check, results) if new != text]
    for path in stale:
        print(f"{path} is stale; `bench report --write` updates it", file=sys.stderr)
    for path, text, new in list(pages(args.write, results)):
        if new != text:
            with writing("--write", path):
                path.write_text(new)
        changed = "updated" if new != text else "unchanged"
        print(f"{path}: {len(OPENING.findall(text))} table(s), {changed}")
    if args.check is args.write is None and (args.plots is None or args.json):
        show(results, args.machine, args.json)
    return int(bool(stale))


def pages(files: list[str] | None, results: Path) -> Iterator[tuple[Path, str, str]]:
    """A file, its text, and its text with every table made anew, for all that have tables."""
    every = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    for path in map(Path, files or filter(Path.exists, every)) if files is not None else ():
        try:
            text = path.read_text()
            if OPENING.search(text):
                yield path, text, filled(text, results, path.parent)
        except (OSError, UnicodeDecodeError, CommandError) as error:
            raise CommandError(f"{path}: {error}") from error


def filled(text: str, results: Path, base: Path) -> str:
    """``text`` with every marked table made anew."""
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
    path, report = read(kind, results, machine)
    command = f"python -m lhkernels bench {kind}"
    try:
        rows, about = report["results"], report["environment"]
        found = layout([row for row in rows if row.get("group", table) == table])
        made = [tables.to_markdown(**t) for t in (found if isinstance(found, list) else [found])]
        where = "{device}, {threads} threads, torch {torch}, {date:.10}".format(**about)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{path} is not what `{command}` writes ({type(error).__name__}: {error})"
        raise CommandError(f"{what}; run it again") from error
    raw = Path(os.path.relpath(path, base)).as_posix()
    return "\n\n".join(made) + f"\n\n<sub>`{command}`: {note}; {where} ([raw]({raw}))</sub>\n"


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
    drawn: list[Path] = []
    for kind, pictures in (("step", draw_roofline), ("scaling", draw_scaling)):
        if any(results.glob(f"{machine or '*'}/{kind}.json")):
            drawn += pictures(read(kind, results, machine)[1], folder)
    if not drawn:
        what = f"there is no step.json or scaling.json in {results}"
        raise CommandError(f"{what}; run `bench step --save` and `bench scaling --save`")
    print("\n".join(f"drawn: {path}" for path in drawn))


def draw_scaling(report: dict[str, Any], folder: Path) -> list[Path]:
    """Milliseconds against size for each part, log-log; upper ends with their slopes."""
    rows, drawn = report["results"], []
    for part in dict.fromkeys(row["kind"] for row in rows):
        axes, found = new_axes(), curves(rows, part)
        if again := curves(rows, part, "ms_product").get(OURS):
            found[AGAIN] = again
        for name, style in styles(found).items():
            curve, label = found[name], name
            if law := fit(curve, part):
                axes.plot(*zip(*law[1].items()), color=style["color"], lw=6, alpha=0.25)
                label += f": slope {law[0]:.2f}"
            if law and part == "step-tensors":
                (first, low), *_, (last, high) = curve.items()
                label += f", {1000 * (high - low) / (last - first):.2g} µs a tensor"
            axes.plot(*zip(*curve.items()), label=label, ms=7, **style)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=10)
        what = "opt.step() [ms]" if part.startswith("step") else "H V, one-time part included [ms]"
        axes.set(xlabel=PARTS[part][0], ylabel=what, title="slopes are of the shaded part")
        drawn.append(save(axes, report, PARTS[part][1], folder / f"scaling-{part}.png"))
    return drawn


def draw_roofline(report: dict[str, Any], folder: Path) -> list[Path]:
    """Bytes that a step reads and writes for an element against the rate at which it does so.

    What fits a cache lies above the line of a copy. Along a grey line the time for an element is
    the same: to be high *above* them counts, and few bytes get there at a lower rate.
    """
    rows = [r for r in report["results"] if r.get("bytes_per_element") and r["dtype"] == "float32"]
    if not rows:
        return []
    axes, copy = new_axes(), max(r["gb_per_s"] / r["of_copy"] for r in rows)
    for name, style in styles(r["contender"] for r in rows).items():
        own = [r for r in rows if r["contender"] == name]
        xs = [r["bytes_per_element"] for r in own]
        ys = [x * r["elements"] / (r["ms"] * 1e6) for x, r in zip(xs, own)]
        hollow = {} if name == OURS else {"mfc": "none", "zorder": 3}  # shows what it lies upon
        axes.plot(xs, ys, label=name, ms=9, mew=1.6, **style | {"ls": "none"} | hollow)
    axes.axhline(copy, color="k", lw=1)
    left, right, bottom, top = axes.axis()
    left, right, bottom, top = axes.axis((left / 1.3, right * 1.3, bottom / 1.2, top * 1.3))
    axes.text(left * 1.03, copy * 1.02, f"a copy: {copy:.3g} GB/s", va="bottom")
    for ns in (2.0**k for k in range(-12, 9)):
        start, end = max(left, bottom * ns), min(right, top * ns)
        if start < end:
            axes.plot([start, end], [start / ns, end / ns], color="0.75", lw=0.8, zorder=1)
            axes.text(end, end / ns, f"{ns:.2g} ns", color="0.4", size=9, ha="right", va="top")
    axes.set(xlabel="bytes read and written for an element of the parameters", ylabel="GB/s")
    axes.set(title="opt.step(), float32: a point a network; grey: time for an element")
    axes.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return [save(axes, report, (10, 20, 44, 68, 100), folder / "roofline.png")]


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour, a marker and dashes for each name; ours always the same."""
    others = cycle(zip(COLOURS, "o^DvPX*", DASHES, [1.6] * len(DASHES)))
    ours = {OURS: OURS_STYLE, AGAIN: OURS_STYLE | {"ls": "--", "mfc": "white"}}
    return {n: ours.get(n) or dict(zip(OURS_STYLE, next(others))) for n in dict.fromkeys(names)}


def new_axes() -> Any:
    """Log-log, at a phone's width."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6.4, 5.4), dpi=130, layout="constrained").subplots()
    axes.set(xscale="log", yscale="log")
    return axes


def save(axes: Any, report: dict[str, Any], ticks: Iterable[int], path: Path) -> Path:
    """As PNG, with plain numbers and the machine in the title."""
    from matplotlib.ticker import LogLocator, NullLocator

    title = "{device}, {threads} threads\n".format(**report["environment"]) + axes.get_title()
    axes.set_title(title, fontsize=11)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    inside = [x for x in ticks if left < x < right]
    axes.set_xticks(inside, [f"{x:,}" if right < 1e6 else f"1e{len(str(x)) - 1}" for x in inside])
    axes.tick_params(labelsize=11)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.label.set_size(12)
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path)
    return path
