"""What the pages say is true: code runs, links lead somewhere, commands and targets exist.

In README.md and docs/*.md, Python blocks of a page run in order and share their names. A comment
just above a block, which GitHub does not show, may hold

    <!-- run first:              code that the block needs and the reader does not
    ...
    -->
    <!-- no-run: the reason -->  for a block that can't run here

`make docs` builds the site besides, where a link or reference that leads nowhere is an error.
"""

from __future__ import annotations

import doctest
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lhkernels.cli import build_parser, main

ROOT = Path(__file__).parent.parent
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")),
]
EXAMPLES = sorted(path.name for path in ROOT.glob("examples/*.py"))
OPTIONAL = ("matplotlib", "scipy", "sklearn", "rich")
MARKDOWN = MarkdownIt("commonmark").enable("table")
MARKER = re.compile(r"<!--\s*(run first|no-run):?(.*?)-->", re.DOTALL)


def parse(page: str) -> list[Token]:
    return MARKDOWN.parse((ROOT / page).read_text(encoding="utf-8"))


def inline(page: str, kind: str) -> list[Token]:
    """Code spans, links and so on."""
    return [child for token in parse(page) for child in token.children or () if child.type == kind]


def is_python(token: Token) -> bool:
    return token.type == "fence" and token.info in ("python", "pycon")


def run_page(page: str) -> int:
    """Run a page's blocks, so that a traceback shows the page and its line; how many there were."""
    names: dict[str, Any] = {"__name__": "__main__"}
    tokens = parse(page)
    for above, block in zip([None, *tokens], tokens):
        if not is_python(block):
            continue
        found = MARKER.match(above.content) if above and above.type == "html_block" else None
        marker, note = found.groups() if found else (None, "")
        if marker == "no-run":
            assert len(note.strip()) > 5, f"{page}:{block.map[0]}: no-run needs a reason"
            continue
        if marker == "run first":
            execute(note, page, above.map[0], names)
        run = run_session if block.info == "pycon" else execute
        run(block.content, page, block.map[0] + 1, names)
    return sum(map(is_python, tokens))


def execute(code: str, page: str, line: int, names: dict[str, Any]) -> None:
    exec(compile("\n" * line + code, str(ROOT / page), "exec"), names)


def run_session(code: str, page: str, line: int, names: dict[str, Any]) -> None:
    """Run a ``>>>`` session and compare what it prints."""
    test = doctest.DocTestParser().get_doctest(code, names, page, str(ROOT / page), line)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, "".join(report)


def run_or_skip(run: Any) -> Any:
    """What an optional package is missing for is skipped."""
    try:
        return run()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Whatever a page or script writes goes into an empty folder, and no window opens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.mark.parametrize("page", [p for p in PAGES if any(map(is_python, parse(p)))])
def test_code_of_a_page_runs(page):
    assert run_or_skip(lambda: run_page(page))


@pytest.mark.parametrize("script", EXAMPLES)
def test_an_example_runs(script, monkeypatch, capsys):
    path = str(ROOT / "examples" / script)
    monkeypatch.setattr("sys.argv", [path])
    run_or_skip(lambda: runpy.run_path(path, run_name="__main__"))
    assert capsys.readouterr().out, "an example shows something"


def on_ranks(count: int, script: str, *args: str) -> str:
    """What an example prints under torchrun."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [sys.executable, *command, str(ROOT / "examples" / script), *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=1800, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_distributed_example_on_two_ranks():
    assert "2 rank(s) alike" in on_ranks(2, "distributed.py")


def test_fsdp2_example_goes_on_with_another_number_of_ranks(tmp_path):
    first = on_ranks(2, "fsdp2.py", "--save", str(tmp_path / "saved"))
    then = on_ranks(3, "fsdp2.py", "--load", str(tmp_path / "saved"))
    (_, reached), (start, _) = (map(float, re.findall(r"\d\.\d+", text)) for text in (first, then))
    assert "2 rank(s)" in first
    assert "3 rank(s)" in then
    assert abs(start - reached) < 0.2  # not from the start, where it is 4.4


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = [token.attrs["href"] for token in inline(page, "link_open")]
    for link in links + [token.attrs["src"] for token in inline(page, "image")]:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if re.match("https?:|mailto:", link):
            continue
        assert target.exists(), f"{page} links to {path}, which is not there"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page}: no heading #{anchor}"


def anchors(page: Path) -> set[str]:
    """GitHub's ids of a page's headings; of those that are alike all but the first are numbered."""
    seen: Counter[str] = Counter()
    ids = set()
    for token, heading in pairwise(parse(page)):
        if token.type == "heading_open":
            text = "".join(t.content for t in heading.children if t.type in ("text", "code_inline"))
            plain = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
            ids.add(f"{plain}-{seen[plain]}" if seen[plain] else plain)
            seen[plain] += 1
    return ids


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    """``python -m lhkernels ...`` is what the parser takes, ``make ...`` a target."""
    code = [t.content.replace("\\\n", " ") for t in parse(page) if t.type == "fence"]
    code += [token.content for token in inline(page, "code_inline")]
    for line in (line.strip() for block in code for line in block.splitlines()):
        words = re.sub(r"\[.*?\]|#.*", "", line).removeprefix("$ ").split(";")[0]
        command = re.match(r"(?:[\w.]*/)*python3? -m lhkernels\b(.*)", words)
        pattern = "..." in words or re.search(r"\b[A-Z]{3,}\b", words)
        if command and command[1].strip() and not pattern:
            # a|b stands for either; whether this machine has a GPU is no matter
            with mock.patch("torch.cuda.is_available", return_value=True):
                build_parser().parse_args([w.split("|")[0] for w in shlex.split(command[1])])
        target = re.match(r"make (\w+)\b", words)
        if target:
            found = f"\n{target[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
            assert found, f"{page}: no target {target[1]}"


def test_tables_are_those_of_the_kept_results(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["bench", "report", "--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES)
def test_github_renders_the_formulas(page):
    """Macros that GitHub refuses, and what its Markdown eats before MathJax sees it."""
    for macro in (r"\operatorname", r"\def", r"\newcommand", r"\DeclareMathOperator", r"\href"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert macro not in text, f"{page}: GitHub does not allow {macro}"
    for paragraph in (token.content for token in parse(page) if token.type == "inline"):
        text = re.sub(r"(`+).*?\1", "", paragraph, flags=re.DOTALL)
        assert "$$" not in text, f"{page}: use a ```math block"
        assert text.count("$") % 2 == 0, f"{page}: a $ has no partner in:\n{paragraph}"
        for formula in re.findall(r"\$(.+?)\$", text, re.DOTALL):
            eaten = re.search(r"\\[^a-zA-Z\s]", formula)
            assert not eaten, f"{page}: ${formula}$ loses a backslash; use a ```math block"
            assert "<" not in formula, f"{page}: ${formula}$ needs \\lt"


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
    fails(test_links_lead_somewhere, "![a](b.png)")
    fails(test_links_lead_somewhere, "# Title\n\n[a](page.md#titel)")
    fails(test_commands_exist, "`make teh-tests`")
    fails(test_commands_exist, "```\npython -m lhkernels train --lrr 0.1\n```\n", SystemExit)
    fails(test_github_renders_the_formulas, r"so $a\,b$")
    fails(test_github_renders_the_formulas, r"so $a")
    fails(test_github_renders_the_formulas, "```math\n\\operatorname{tr}\n```\n")
