"""Write docs/api.md, the reference of the public names, from their docstrings.

    python tools/api_reference.py            write it
    python tools/api_reference.py --check    exit with 1 if it is not up to date

Docstrings are Google style with the reStructuredText that they need: roles, literal blocks, simple
tables, doctests, ``.. math::``. Only what a module defines is shown, and what its docstring leaves
out is left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"

# What a user touches; of each its __all__, or else the public names that it defines.
MODULES = (
    "lhkernels",
    "lhkernels.hessian",
    "lhkernels.reference",
    "lhkernels.training",
    "lhkernels.hyperparameters",
    "lhkernels.step.base",
    "lhkernels.step.fused",
    "lhkernels.step.dispatch",
    "lhkernels.ops",
)

HEADER = """\
# API reference

Written from the docstrings by `python tools/api_reference.py`; do not edit it by hand. Where to
start: [the pages](README.md).

"""

SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields", "Example", "Examples", "Note")
SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):$")
PAGES = re.compile(r"(?<!\]\()\bdocs/([\w-]+\.md)")
ALIGNED = re.compile(r"^\S+(?:, \S+)*  +\S", re.MULTILINE)  # a table of two columns, by spaces
ITEM = re.compile(r"^(\*{0,2}[\w., *]+?)(?: \(([^)]*)\))?: (.*)$", re.DOTALL)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    check = parser.parse_args(argv).check
    text = render()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/api.md is not up to date: run `make docs`", file=sys.stderr)
        return 1
    return 0


def render() -> str:
    """The whole page."""
    contents: list[str] = []
    body: list[str] = []
    seen: set[int] = set()  # what has been shown already, under another name
    ids: Counter[str] = Counter()  # GitHub numbers the headings that would have one id
    for name in MODULES:
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        shown = [(n, value) for n, value in public(module) if id(value) not in seen]
        seen.update(id(value) for _, value in shown)
        if not shown:
            continue
        section = [f"## {name}", markdown(inspect.getdoc(module) or "")]
        for n, value in shown:
            section += entry(value, f"{name}.{n}")
        where = {}
        for heading in re.findall(r"^##+ (.+)$", "\n\n".join(section), re.MULTILINE):
            where[heading] = anchor(heading) + (
                f"-{ids[anchor(heading)]}" * (anchor(heading) in ids)
            )
            ids[anchor(heading)] += 1
        links = ", ".join(f"[{n}](#{where[f'{name}.{n}']})" for n, _ in shown)
        contents.append(f"- [`{name}`](#{where[name]}): {links}")
        body += section
    return HEADER + "\n\n".join(filter(None, ["\n".join(contents), *body])) + "\n"


def public(module: Any) -> list[tuple[str, Any]]:
    """Public classes and functions with a docstring: ``__all__``, or what the module defines."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    values = [(name, getattr(module, name)) for name in names]
    return [(n, v) for n, v in values if inspect.isclass(v) or inspect.isroutine(v)]


def entry(value: Any, path: str) -> Iterator[str]:
    """A class with its members, or a function."""
    kind = "class " if inspect.isclass(value) else ""
    name = path.rpartition(".")[2]
    yield f"### {path}"
    yield f"```python\n{kind}{signature(value, name)}\n```"
    yield markdown(inspect.getdoc(value) or "")
    if kind:
        for member, doc, shape in members(value):
            yield f"#### {name}.{member}"
            yield f"```python\n{shape}\n```"
            yield markdown(doc)


def members(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, docstring and signature of what a class itself defines and documents."""
    for name, raw in vars(cls).items():
        if name.startswith("_") and name != "__matmul__":
            continue
        target = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        doc = getattr(target, "__doc__", None)
        if isinstance(raw, property) and doc:
            of = inspect.signature(raw.fget).return_annotation if raw.fget else inspect._empty
            yield (
                name,
                inspect.cleandoc(doc),
                f"{name}" + ("" if of is inspect._empty else f": {of}"),
            )
        elif inspect.isfunction(target) and doc:
            mark = "" if target is raw else f"@{type(raw).__name__}\n"
            yield name, inspect.cleandoc(doc), mark + signature(target, name, bound=True)


def signature(value: Callable[..., Any], name: str, *, bound: bool = False) -> str:
    """``name(...)`` on one line if it is short, else a parameter a line."""
    try:
        shape = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parameters = list(shape.parameters.values())
    if bound and parameters and parameters[0].name in ("self", "cls"):
        shape = shape.replace(parameters=parameters[1:])
    if inspect.isclass(value):
        shape = shape.replace(return_annotation=inspect.Signature.empty)
    # annotations are strings in the source: shown as they are written there
    text = name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(shape))
    if len(text) <= 88:
        return text
    inside, _, after = text.partition("(")[2].rpartition(")")
    lines = "".join(f"    {part.strip()},\n" for part in split_top(inside))
    return f"{name}(\n{lines}){after}"


def split_top(text: str) -> list[str]:
    """Split at the commas that no bracket encloses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def anchor(heading: str) -> str:
    """GitHub's id of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def markdown(doc: str) -> str:
    """A docstring as Markdown."""
    blocks: list[str] = []
    lines = doc.splitlines()
    while lines:
        line = lines.pop(0)
        if SECTION.match(line):
            blocks.append(f"**{line}**")
            blocks.append(items(SECTION.match(line)[1], indented(lines)))
        elif line.startswith(".. math::"):
            first = line.removeprefix(".. math::").strip()
            blocks.append(formula("\n".join([first] * bool(first) + indented(lines))))
        elif line.startswith(">>>"):
            session = [line]
            while lines and lines[0].strip():
                session.append(lines.pop(0))
            joined = "\n".join(session)
            if blocks and blocks[-1].endswith("```") and "```pycon" in blocks[-1]:
                blocks[-1] = f"{blocks[-1][:-3]}\n{joined}\n```"
            else:
                blocks.append(f"```pycon\n{joined}\n```")
        elif re.match(r"^=+( +=+)+$", line):
            table = [line]
            while lines and lines[0].strip():
                table.append(lines.pop(0))
            blocks.append(rst_table(table))
        elif line.strip():
            paragraph = [line]
            while lines and lines[0].strip() and not SECTION.match(lines[0]):
                paragraph.append(lines.pop(0))
            text = "\n".join(paragraph)
            if text.endswith("::"):
                blocks.append(inline(text[:-1]))
                blocks.append("```\n" + "\n".join(indented(lines)) + "\n```")
            elif line.startswith("    ") or len(ALIGNED.findall(text)) > 1:
                blocks.append("```\n" + inspect.cleandoc("\n" + text).replace("``", "") + "\n```")
            else:
                blocks.append(inline(text))
    return "\n\n".join(block for block in blocks if block)


def indented(lines: list[str]) -> list[str]:
    """Take the indented lines that come next, without their indent."""
    taken = []
    while lines and (not lines[0].strip() or lines[0].startswith("    ")):
        taken.append(lines.pop(0)[4:])
    while taken and not taken[0].strip():
        taken.pop(0)
    while taken and not taken[-1].strip():
        taken.pop()
    return taken


def items(section: str, lines: list[str]) -> str:
    """A section's body: a list where its lines are ``name: text``, else text."""
    if section in ("Returns", "Yields", "Example", "Examples", "Note"):
        return markdown("\n".join(lines))
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("    ") and rows:
            rows[-1].append(line.strip())
        elif line.strip():
            rows.append([line])
    texts = [" ".join(row) for row in rows]
    return "\n".join(f"- {item(text)}" for text in texts)


def item(text: str) -> str:
    found = ITEM.match(text)
    if not found:
        return inline(text)
    names = ", ".join(f"`{name.strip()}`" for name in found[1].split(","))
    kind = f" ({inline(found[2])})" if found[2] else ""
    return f"{names}{kind}: {inline(found[3])}"


def rst_table(lines: list[str]) -> str:
    """A simple table as GitHub's, or as a list where it has no header."""
    starts = [m.start() for m in re.finditer(r"=+", lines[0])]
    rows = [
        [line[a:b].strip() for a, b in pairwise([*starts, None])]
        for line in lines
        if not line.startswith("==")
    ]
    if len(lines) - len(rows) == 2:
        return "\n".join(f"- `{first}`: {inline(' '.join(rest))}" for first, *rest in rows)
    cells = [[inline(cell.replace("|", r"\|")) for cell in row] for row in rows]
    head, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(starts), *body])


def formula(text: str) -> str:
    """A displayed formula; one with several lines needs an environment."""
    if "&" in text or r"\\" in text:
        text = f"\\begin{{aligned}}\n{text}\n\\end{{aligned}}"
    return f"```math\n{text}\n```"


def inline(text: str) -> str:
    """Roles and double backticks as code, pages as links; HTML is escaped outside of code."""
    text = re.sub(r":\w+:`~(?:\w+\.)*(\w+)`", r"`\1`", text)
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [PAGES.sub(r"[\1](\1)", part.replace("<", "&lt;")) for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
