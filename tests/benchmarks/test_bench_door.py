"""``lhkernels bench`` leads to the checkout's benchmarks, and says where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

import lhkernels
from lhkernels.cli import main

ROOT = Path(__file__).parents[2]


def test_kinds_are_found_from_anywhere(tmp_path):
    """Beside the package, wherever the command is given; and before a stranger of that name."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()
    code = f"import sys; sys.path.append({str(ROOT)!r}); from lhkernels.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "--help"],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(kind in done.stdout for kind in ("step", "hvp", "scaling", "suite", "report"))


@pytest.fixture(params=["alone", "beside another bench"])
def installed(request, tmp_path, monkeypatch):
    """The package in a folder that is no checkout."""
    monkeypatch.setattr(lhkernels, "__file__", str(tmp_path / "lhkernels" / "__init__.py"))
    if request.param != "alone":
        (tmp_path / "bench").mkdir()
        (tmp_path / "bench" / "__init__.py").write_text("raise AssertionError")


@pytest.mark.parametrize("arguments", [[], ["step"], ["hvp", "--seconds", "1", "--json"]])
@pytest.mark.usefixtures("installed")
def test_without_a_checkout_the_remedy_is_told(arguments, capsys, tmp_path):
    assert main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert "lhkernels bench: error: benchmarks run from a checkout of the repository" in err
    assert str(tmp_path) in err
    assert "make install" in err


@pytest.mark.usefixtures("installed")
def test_without_a_checkout_there_is_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0
    assert "checkout of the repository" in " ".join(capsys.readouterr().out.split())
