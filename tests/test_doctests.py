"""The examples in docstrings; ``python -m pytest --doctest-modules lhkernels`` runs the same."""

import doctest
import importlib
import inspect
import re
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
    failed, attempted = doctest.testmod(module)  # prints what differs
    assert attempted
    assert not failed


@pytest.mark.parametrize("name", [name for name in lh.__all__ if not name.startswith("_")])
def test_public_names_have_an_example_and_a_place_in_the_reference(name):
    doc = inspect.getdoc(getattr(lh, name)) or ""
    assert ">>> " in doc, f"show how lhkernels.{name} is used, in its docstring"
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.rst"))
    assert re.search(rf":: {name}$", pages, re.MULTILINE), f"docs/api/ lacks lhkernels.{name}"
