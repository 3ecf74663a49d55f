"""Build the wheel and the sdist, install each in an environment of its own, and take a step there.

    python tools/check_packages.py

The sdist is installed with a compiler, without one, and with LHKERNELS_NO_EXTENSION=1. Nothing is
downloaded and the checkout stays as it is: the sources are copied, and the new environments see the
packages of this one (torch, setuptools), which needs `build` as well.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STEP = """
import json, pathlib, sys, torch, lhkernels as lh
assert pathlib.Path(lh.__file__).is_relative_to(sys.prefix), lh.__file__
model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False), torch.nn.BatchNorm1d(4))
opt = lh.ScaleAmendedSGD(model.named_parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
before = model[0].weight.detach().clone()
factor = opt.block_scales()["0.weight"]
model(torch.randn(8, 6))[:, 0].square().sum().sqrt().backward()
expected = before - 0.1 * factor * (model[0].weight.grad + 1e-3 * before)
opt.step()
torch.testing.assert_close(model[0].weight.detach(), expected)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="lhkernels-packages-") as temporary:
        folder = Path(temporary)
        wheel, sdist = build(folder)
        check_contents(wheel, sdist)
        cases = [
            ("the wheel", wheel, {}, "available"),
            ("the sdist", sdist, {}, "available"),
            ("the sdist, no compiler", sdist, {"CXX": "/nonexistent/c++"}, "there is no compiler"),
            ("the sdist, no extension", sdist, {"LHKERNELS_NO_EXTENSION": "1"}, "was set"),
        ]
        for number, (name, package, environment, state) in enumerate(cases):
            found = try_installation(folder / f"env{number}", package, environment)
            assert state in found, f"{name}: the C++ step is {found!r}, not {state!r}"
            print(f"{name}: a step was right; the C++ step is {found}")


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of the files that git tracks or would."""
    source = folder / "source"
    names = run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source])
    (wheel,), (sdist,) = (list((folder / "dist").glob(f"*.{end}")) for end in ("whl", "tar.gz"))
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Nothing stray in the wheel, all sources in the sdist."""
    names = set(zipfile.ZipFile(wheel).namelist())
    stray = {n for n in names if not n.startswith(("lhkernels/", "lhkernels-"))}
    assert not stray, f"stray files in the wheel: {sorted(stray)}"
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "lhkernels").rglob("*.py")}
    assert modules <= names, f"not in the wheel: {sorted(modules - names)}"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").iterdir()}
    wanted = modules | sources | {"LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert wanted <= names, f"not in the sdist: {sorted(wanted - names)}"


def try_installation(folder: Path, package: Path, environment: dict[str, str]) -> str:
    """Install into a new environment and take a step; what ``info`` says of the C++ backend."""
    venv.create(folder, clear=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    where = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    Path(where.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    run([*pip, "install", *offline, package], **environment)
    run([python, "-c", STEP], cwd=folder)
    found = json.loads(run([python, "-m", "lhkernels", "info", "--json"], cwd=folder))
    return found["backends"]["cpp"]


def run(command: list[str | Path], cwd: Path | None = None, **environment: str) -> str:
    """What a command prints; its output and the end of this program if it fails."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**clean, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
