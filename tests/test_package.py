"""The package as a whole: it imports without its extras, and `info` says what it found."""

import json
import subprocess
import sys

import pytest

import lhkernels as lh
from lhkernels.cli import main

STEP_WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it raises ImportError
import torch, lhkernels
p = torch.nn.Parameter(torch.ones(2, 2))
p.grad = torch.ones(2, 2)
opt = lhkernels.ScaleAmendedSGD([p], lr=0.25)
opt.step()
assert torch.equal(p, torch.full((2, 2), 1 - 0.25 * 2)), p
from lhkernels.cli import main
main(["info"])
"""


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env or None, check=False
    )


def test_the_optimizer_works_without_triton_and_extras():
    blocked = ["triton", "numpy", "scipy", "matplotlib", "sklearn", "rich", "expecttest"]
    done = run_python(STEP_WITHOUT.format(blocked=blocked))
    assert done.returncode == 0, done.stderr
    assert "reference" in done.stdout


def test_importing_is_light():
    done = run_python(
        "import sys, lhkernels, lhkernels.cli; heavy = 'triton matplotlib sklearn rich scipy'; "
        "print([m for m in heavy.split() if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_info_names_versions_and_backends(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["lhkernels"] == lh.__version__
    assert set(found["backends"]) == {"reference", "foreach", "cpp", "triton"}
    for name, state in found["backends"].items():
        assert state.startswith("available") or state.startswith("not available: "), name
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert all(line in text for line in ("versions", "devices", "backends"))


def test_bad_commands_exit_with_2(capsys):
    for argv in ([], ["wait"], ["info", "--wait"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
    assert "usage: lhkernels" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"lhkernels {lh.__version__}"
