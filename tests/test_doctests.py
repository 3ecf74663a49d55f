"""The examples in docstrings; docs/api.md is written from them and is up to date.

``python -m pytest --doctest-modules lhkernels`` runs the same examples.
"""

import doctest
import importlib
import inspect
import runpy
from pathlib import Path

import pytest

import lhkernels as lh

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "lhkernels").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
OPTIONAL = ("matplotlib", "scipy", "triton")


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {error.name}")
    report: list[str] = []
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    failed, attempted = runner.summarize(verbose=False)
    assert attempted
    assert not failed, "".join(report)


@pytest.mark.parametrize("name", [name for name in lh.__all__ if not name.startswith("_")])
def test_public_names_have_an_example(name):
    doc = inspect.getdoc(getattr(lh, name)) or ""
    assert ">>> " in doc, f"show how lhkernels.{name} is used, in its docstring"


def test_the_reference_page_is_up_to_date():
    tool = runpy.run_path(str(ROOT / "tools" / "api_reference.py"))
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == tool["render"](), "run `make docs`"


def test_docstrings_become_markdown():
    tool = runpy.run_path(str(ROOT / "tools" / "api_reference.py"))
    doc = """Sum ``a`` as :func:`~x.y.z` does, see docs/step.md::

        b = sum(a)

    ====  =======
    kind  what
    ====  =======
    one   ``|a|``
    ====  =======

    Args:
        a, b: in [0, 1],
            or None.
        c (int): 1 < c.

    >>> 1 + 1
    2

    .. math:: x
    .. math::
        x &= 1 \\\\
        y &= 2
    """
    expected = r"""Sum `a` as `z` does, see [step.md](step.md):

```
b = sum(a)
```

| kind | what |
|---|---|
| one | `\|a\|` |

**Args:**

- `a`, `b`: in [0, 1], or None.
- `c` (int): 1 &lt; c.

```pycon
>>> 1 + 1
2
```
"""
    assert tool["markdown"](inspect.cleandoc(doc)).startswith(expected.rstrip())
    aligned = (
        "```math\nx\n```\n\n```math\n\\begin{aligned}\nx &= 1 \\\\\ny &= 2\n\\end{aligned}\n```"
    )
    assert tool["markdown"](inspect.cleandoc(doc)).endswith(aligned)
