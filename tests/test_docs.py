"""What the pages say is true: code runs, links lead somewhere, commands and targets exist.

In README.md and docs/*.md, Python blocks of a page run in order and share their names (docs/api.md
aside: its examples are the docstrings'). A comment
just above a block, which GitHub does not show, may hold

    <!-- run first:              code that the block needs and the reader does not
    ...
    -->
    <!-- no-run: the reason -->  for a block that can't run here
"""

from __future__ import annotations

import doctest
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lhkernels.cli import build_parser, main

ROOT = Path(__file__).parent.parent
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")),
]
EXAMPLES = sorted(path.name for path in ROOT.glob("examples/*.py"))
OPTIONAL = ("matplotlib", "scipy", "sklearn", "rich")

FENCE = re.compile(
    r"(?:^<!--\s*(?P<marker>run first|no-run):?(?P<note>.*?)-->\s*\n)?"
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<code>.*?)^(?P=indent)```\s*$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")


class Fence(NamedTuple):
    marker: str | None
    note: str
    language: str
    code: str
    line: int  # of the first line of code
    note_line: int


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(text: str) -> list[Fence]:
    def line(position: int) -> int:
        return text.count("\n", 0, position) + 1

    return [
        Fence(
            m["marker"], m["note"] or "", m["language"], m["code"],
            line(m.start("code")), line(m.start("note")) if m["marker"] else 0,
        )
        for m in FENCE.finditer(text)
    ]  # fmt: skip


def python_of(page: str) -> list[Fence]:
    return [f for f in fences(read(page)) if f.language in ("python", "pycon")]


def execute(code: str, page: str, line: int, names: dict[str, Any]) -> None:
    """Run code so that a traceback shows the page and its line."""
    exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), names)


def run_session(code: str, page: str, line: int, names: dict[str, Any]) -> None:
    """Run a ``>>>`` session and compare what it prints."""
    test = doctest.DocTestParser().get_doctest(code, names, page, str(ROOT / page), line - 1)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, "".join(report)


def run_page(page: str) -> int:
    """Run a page's blocks; how many there were."""
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = python_of(page)
    for block in blocks:
        if block.marker == "no-run":
            assert len(block.note.strip()) > 5, f"{page}:{block.note_line}: no-run needs a reason"
            continue
        if block.marker == "run first":
            execute(block.note, page, block.note_line, names)
        run = run_session if block.language == "pycon" else execute
        run(block.code, page, block.line, names)
    return len(blocks)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Whatever a page or script writes goes into an empty folder, and no window opens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.mark.parametrize("page", [p for p in PAGES if python_of(p) and p != "docs/api.md"])
def test_code_of_a_page_runs(page):
    try:
        assert run_page(page)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{page} needs {error.name}")


@pytest.mark.parametrize("script", EXAMPLES)
def test_an_example_runs(script, monkeypatch, capsys):
    path = ROOT / "examples" / script
    monkeypatch.setattr("sys.argv", [str(path)])
    try:
        runpy.run_path(str(path), run_name="__main__")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{script} needs {error.name}")
    assert capsys.readouterr().out, "an example shows something"


def test_distributed_example_on_two_ranks():
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(ROOT / "examples" / "distributed.py")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 rank(s) alike" in done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in LINK.finditer(without_code(read(page))):
        target = (ROOT / page).parent / link["path"] if link["path"] else ROOT / page
        assert target.exists(), f"{page} links to {link['path']}, which is not there"
        if link["anchor"] and target.suffix == ".md":
            assert link["anchor"] in anchors(target), f"{page}: no heading #{link['anchor']}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    """``python -m lhkernels ...`` is what the parser takes, ``make ...`` a target."""
    text = read(page).replace("\\\n", " ")
    code = [f.code for f in fences(text)] + re.findall(r"`([^`\n]+)`", without_code(text))
    lines = [line.strip() for block in code for line in block.splitlines()]
    for line in lines:
        words = re.sub(r"\[.*?\]|#.*", "", line).removeprefix("$ ").split(";")[0]
        command = re.match(r"(?:[\w.]*/)*python3? -m lhkernels\b(.*)", words)
        pattern = "..." in words or re.search(r"\b[A-Z]{3,}\b", words)
        if command and command[1].strip() and not pattern:
            build_parser().parse_args(with_a_value_each(shlex.split(command[1])))
        target = re.match(r"make (\w+)\b", words)
        if target:
            assert f"\n{target[1]}:" in read("Makefile"), f"{page}: no target {target[1]}"


def test_tables_are_those_of_the_kept_results(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["bench", "report", "--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES)
def test_github_renders_the_formulas(page):
    """Macros that GitHub refuses, and what its Markdown eats before MathJax sees it."""
    text = re.sub(r"^( *)```math\n.*?^\1```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    for macro in (r"\operatorname", r"\def", r"\newcommand", r"\DeclareMathOperator", r"\href"):
        assert macro not in read(page), f"{page}: GitHub does not allow {macro}"
    text = re.sub(r"\$`.*?`\$", "", without_code(text))
    assert "$$" not in text, f"{page}: use a ```math block"
    for paragraph in text.split("\n\n"):
        assert paragraph.count("$") % 2 == 0, f"{page}: a $ has no partner in:\n{paragraph}"
        for formula in re.findall(r"\$(.+?)\$", paragraph, re.DOTALL):
            eaten = re.search(r"\\[^a-zA-Z\s]", formula)
            assert not eaten, f"{page}: ${formula}$ loses a backslash; write $`...`$"
            assert "<" not in formula, f"{page}: ${formula}$ needs \\lt"


def without_code(text: str) -> str:
    """Prose: fences and comments taken out, inline code kept."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"^( *)```.*?^\1```\s*?$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """GitHub's ids of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.M)
    plain = [
        re.sub(r"\]\(.*?\)|[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings
    ]
    found: dict[str, int] = {}
    ids = set()
    for heading in plain:
        count = found.get(heading, 0)
        ids.add(f"{heading}-{count}" if count else heading)
        found[heading] = count + 1
    ids.update(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text(encoding="utf-8")))
    return ids


def with_a_value_each(words: list[str]) -> list[str]:
    """``a|b`` in a command stands for either."""
    return [word.split("|")[0] for word in words]


def test_a_false_page_is_found_out(tmp_path, monkeypatch):
    """The checks above can fail."""
    monkeypatch.setattr("test_docs.ROOT", tmp_path)
    (tmp_path / "Makefile").write_text("test:\n")

    def fails(check, text, error=AssertionError):
        (tmp_path / "page.md").write_text(text)
        with pytest.raises(error):
            check("page.md")

    fails(run_page, "```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    fails(run_page, "<!-- run first:\nx = 1\n-->\n```python\nx / 0\n```\n", ZeroDivisionError)
    fails(run_page, "```pycon\n>>> 1 + 1\n3\n```\n")
    fails(run_page, "<!-- no-run: -->\n```python\nx = 1\n```\n")
    fails(test_links_lead_somewhere, "[a](b.md)")
    fails(test_links_lead_somewhere, "# Title\n\n[a](page.md#titel)")
    fails(test_commands_exist, "`make teh-tests`")
    fails(test_commands_exist, "```\npython -m lhkernels train --lrr 0.1\n```\n", SystemExit)
    fails(test_github_renders_the_formulas, r"so $a\,b$")
    fails(test_github_renders_the_formulas, r"so $a")
    fails(test_github_renders_the_formulas, "```math\n\\operatorname{tr}\n```\n")
