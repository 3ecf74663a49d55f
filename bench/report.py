"""Kept results as Markdown tables, between markers in README and docs.

    <!-- bench:step xeon-2-cores -->
    ... replaced ...
    <!-- /bench:step -->

The first word names the table, one of :data:`TABLES`; the second, if any, the machine, a folder of
bench/results/ (needed where several machines have such a file). Below each table stand the command
that makes its figures, the hardware and the file that they come from.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = re.compile(
    r"(?P<open><!-- bench:(?P<table>[\w-]+)(?: (?P<machine>[\w.-]+))? -->)\n"
    r"(?P<body>.*?)(?P<close><!-- /bench:(?P=table) -->)",
    re.DOTALL,
)
OPENING = re.compile(r"<!-- bench:([\w-]+)")

TITLES = {
    "vgg13": "VGG13",
    "resnet50": "ResNet-50",
    "vit-b16": "ViT-B/16",
    "gpt2-small": "GPT-2 small",
    "transformer-1b": "1 B, bf16",
    "transformer-7b": "7 B, bf16",
}
CALLS = {
    "lhkernels": "`ScaleAmendedSGD`",
    "lhkernels, amend=False": "`ScaleAmendedSGD(amend=False)`",
    "lhkernels reference": "`ScaleAmendedSGD(foreach=False)`, the reference",
    "torch foreach": "`torch.optim.SGD(foreach=True)`",
    "torch loop": "`torch.optim.SGD(foreach=False)`",
}
OURS = "lhkernels"
Rows = list[dict[str, Any]]


class ReportError(Exception):
    """What the user can mend: a missing file, an unknown table, a marker without its end."""


def step_table(results: Rows) -> list[str]:
    """Milliseconds of torch's fused SGD, then everyone's time relative to it."""
    models = list(dict.fromkeys(row["model"] for row in results))
    cells = {(row["contender"], row["model"]): row for row in results}
    sizes = {row["model"]: row["elements"] for row in results}
    heads = [f"{TITLES.get(m, m)}, {_count(sizes[m])}" for m in models]
    lines = _header(["`opt.step()`, momentum and weight decay", *heads])
    baseline = "torch fused"
    milliseconds = [
        f"{_ms(cells[baseline, m]['ms'])} ms" if (baseline, m) in cells else "" for m in models
    ]
    lines.append(_line(["`torch.optim.SGD(fused=True)`", *milliseconds]))
    for name in dict.fromkeys(row["contender"] for row in results):
        if name != baseline:
            ratios = [cells.get((name, m), {}).get("ratio") for m in models]
            texts = ["" if r is None else f"{r:.2f}" for r in ratios]
            lines.append(_line(_bold([CALLS.get(name, name), *texts], name == OURS)))
    return lines


def hvp_table(results: Rows) -> list[str]:
    """A line a block: ours and the best peer, with and without the one-time part."""
    lines = _header(
        [
            "H V, float32",
            "best peer, ms",
            "lhkernels, fresh, ms",
            "again, ms",
            "peak memory, MiB (least of the peers)",
            "error (best peer's)",
        ]
    )
    for title, rows in _by_title(results).items():
        timed = [row for row in rows if row["ms"] is not None]
        peers = [row for row in timed if not row["contender"].startswith(OURS)]
        ours = next((row for row in timed if row["contender"] == OURS), None)
        if ours is None or not peers:
            continue
        best = min(peers, key=lambda row: row["ms"])
        peaks = [row["peak_bytes"] for row in peers if row["peak_bytes"] is not None]
        least = f" ({_mib(min(peaks))})" if peaks else ""
        lines.append(
            _line(
                [
                    f"{title} ({ours['form']})",
                    f"{_ms(best['ms'])} ({best['contender']})",
                    f"{_ms(ours['ms'])}, **{_times(ours['speedup'])}**",
                    f"{_ms(ours['ms_product'])}, **{_times(ours['speedup_product'])}**",
                    f"{_mib(ours['peak_bytes'])}{least}",
                    f"{ours['error']:.0e} ({best['error']:.0e})",
                ]
            )
        )
    return lines


def hvp_all_table(results: Rows) -> list[str]:
    """A line for every contender on every block."""
    heads = ["", "fresh, ms", "", "again, ms", "", "once, ms", "peak, MiB", "error"]
    lines: list[str] = []
    for title, rows in _by_title(results).items():
        lines += ["", f"**{title}** (dim {rows[0]['dim']}, {rows[0]['rounds']} rounds)", ""]
        lines += _header(heads)
        for row in rows:
            name = row["contender"] + (f" ({row['form']})" if row["form"] else "")
            if row["ms"] is None:
                lines.append(_line([name, "out of memory", *([""] * 6)]))
                continue
            cells = [
                name,
                _ms(row["ms"]),
                _times(row["speedup"]),
                _ms(row["ms_product"]),
                _times(row["speedup_product"]),
                _ms(row["ms_once"]),
                _mib(row["peak_bytes"]),
                f"{row['error']:.0e}",
            ]
            lines.append(_line(_bold(cells, row["contender"] == OURS)))
    return lines[1:]


def slopes_table(results: Rows) -> list[str]:
    """Fitted exponents of the upper end of each curve."""
    from bench.scaling import slopes

    lines = _header(["time grows as x to the power", "x", "contenders"])
    axes = {
        "step-tensors": "tensors, same elements",
        "step-elements": "elements",
        "hvp-columns": "vectors K",
        "hvp-batch": "batch N",
    }
    for kind, found in slopes(results).items():
        what = "`opt.step()`" if kind.startswith("step") else "H V, fresh"
        text = ", ".join(f"{name} {slope:.2f}" for name, slope in found.items())
        lines.append(_line([what, axes[kind], text]))
    return lines


def suite_table(group: str) -> Callable[[Rows], list[str]]:
    """The table of one group of the pytest-benchmark file."""

    def table(results: Rows) -> list[str]:
        rows = [row for row in results if row["group"].partition(" ")[0] == group]
        rows.sort(key=lambda row: row["group"])
        extra = sorted({key for row in rows for key in row["extra_info"]} - {"case", "contender"})
        lines = _header([group, "", "median, ms", *extra])
        for row in rows:
            info = row["extra_info"]
            name = info["contender"]
            cells = [name, _ms(1e3 * row["stats"]["median"]), *(_value(info.get(k)) for k in extra)]
            lines.append(_line([info["case"], *_bold(cells, name.startswith(OURS))]))
        return lines

    return table


# Table: its file, what makes it, and how it is laid out.
TABLES: dict[str, tuple[str, str, Callable[[Rows], list[str]]]] = {
    "step": ("step.json", "python -m lhkernels bench step", step_table),
    "hvp": ("hvp.json", "python -m lhkernels bench hvp", hvp_table),
    "hvp-all": ("hvp.json", "python -m lhkernels bench hvp", hvp_all_table),
    "slopes": ("scaling.json", "python -m lhkernels bench scaling", slopes_table),
    "norms": ("suite.json", "make bench", suite_table("norms")),
    "spectrum": ("suite.json", "make bench", suite_table("spectrum")),
}

NOTES = {
    "step": "rows below the first are time relative to it, medians over rounds in alternation",
    "hvp": "fresh: a new operator and its first product, again: one more; speed-ups are medians "
    "over rounds in alternation, against the best peer of each kind",
    "hvp-all": "speed-ups are against the best peer, medians over rounds in alternation",
    "slopes": "least squares, log-log, over the upper end: the last three points, of tensors the "
    "last two",
    "norms": "each timed alone",
    "spectrum": "each timed alone",
}


def render(table: str, results: Path, machine: str | None, base: Path) -> str:
    """The table in Markdown, its sources below; ``base`` is the folder that links start from."""
    if table not in TABLES:
        raise ReportError(f"unknown table {table!r}; there are {', '.join(TABLES)}")
    file, command, layout = TABLES[table]
    path = locate(file, results, machine, command)
    try:
        report = read(path)
        lines = layout(report["benchmarks" if file == "suite.json" else "results"])
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{path} is not what `{command}` writes ({type(error).__name__}: {error}); run it again"
        ) from error
    environment = report.get("environment") or report["machine_info"]["lhkernels"]
    link = Path(os.path.relpath(path, base)).as_posix()
    note = (
        f"<sub>`{command}`: {NOTES[table]}; {environment['device']}, "
        f"{environment['threads']} threads, torch {environment['torch']}, "
        f"{environment['date'][:10]} ([raw]({link}))</sub>"
    )
    return "\n".join([*lines, "", note]) + "\n"


def read(path: Path) -> dict[str, Any]:
    """What a benchmark wrote, alone or as a part of ``make gpu``."""
    try:
        found = json.loads(path.read_text())
        return found["data"][found["part"]] if "part" in found else found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{path} is no result of a benchmark ({error!r}); run it again"
        ) from error


def locate(file: str, results: Path, machine: str | None, command: str) -> Path:
    """The one file of that name, of the machine if it is named."""
    found = sorted(results.glob(f"{machine or '*'}/{file}"))
    if len(found) == 1:
        return found[0]
    where = f"{results}/{machine or '<machine>'}/{file}"
    if not found:
        raise ReportError(f"there is no {where}; `{command}` writes it (with --save)")
    machines = ", ".join(path.parent.name for path in found)
    raise ReportError(f"several machines have {where}: name one of {machines}")


def available(results: Path, machine: str | None) -> list[tuple[str, str]]:
    """(table, machine) for all files there are."""
    return [
        (table, path.parent.name)
        for table, (file, _, _) in TABLES.items()
        for path in sorted(results.glob(f"{machine or '*'}/{file}"))
    ]


def filled(text: str, results: Path, base: Path) -> str:
    """``text`` with every marked table made anew."""
    opened, matched = OPENING.findall(text), list(MARKER.finditer(text))
    if len(opened) != len(matched):
        raise ReportError(
            f"{len(opened)} tables are opened, but {len(matched)} of them well: each needs "
            "`<!-- bench:NAME [MACHINE] -->` and `<!-- /bench:NAME -->` on lines of their own"
        )

    def replaced(match: re.Match[str]) -> str:
        body = render(match["table"], results, match["machine"], base)
        return f"{match['open']}\n{body}{match['close']}"

    return MARKER.sub(replaced, text)


def _by_title(results: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in results:
        found.setdefault(row["title"], []).append(row)
    return found


def _header(cells: list[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _bold(cells: list[str], yes: bool) -> list[str]:
    return [f"**{cell}**" if yes and cell else cell for cell in cells]


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}x" if value >= 100 else f"{value:.3g}x"


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def _value(value: Any) -> str:
    return "" if value is None else f"{value:.1e}" if isinstance(value, float) else str(value)


def _count(elements: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if elements >= size:
            return f"{elements / size:.3g} {unit}"
    return str(elements)
