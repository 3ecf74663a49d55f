"""Builds the optional C++ extension ``lhkernels._C``; everything else is in pyproject.toml.

Where it can't be built (no torch in the build environment, no compiler, an error), the package
installs without it and keeps the reason, which ``lhkernels._extension.reason()`` tells.

Environment: LHKERNELS_NO_EXTENSION=1 leaves the extension out; DEBUG=1 builds it unoptimised.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).parent
FAILURE = Path("lhkernels", "_build_failure.txt")  # there only where the extension is not
BUILD_ERRORS = (BaseError, CCompilerError, RuntimeError, OSError, subprocess.SubprocessError)

reason = None
try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except (ImportError, OSError) as error:
    reason = f"torch is not in the build environment ({error}): use --no-build-isolation"
    BuildExtension = build_ext
if os.environ.get("LHKERNELS_NO_EXTENSION") == "1":
    reason = "LHKERNELS_NO_EXTENSION=1 was set"


def record(reason, command, in_place):
    path = ROOT / FAILURE if in_place else Path(command.build_lib, FAILURE)
    path.unlink(missing_ok=True)
    if reason is not None:
        for stale in path.parent.glob("_C.*"):
            stale.unlink()
        print(f"lhkernels: without the C++ extension: {reason}", file=sys.stderr)
        path.write_text(reason, encoding="utf-8")


class BuildPython(build_py):
    def run(self):
        super().run()
        if reason is not None:
            record(reason, self, in_place=self.editable_mode)


class BuildOptional(BuildExtension):
    def run(self):
        failure = None
        try:
            super().run()
        except BUILD_ERRORS as error:
            compiler = os.environ.get("CXX", "c++")
            found = shutil.which(compiler) or os.name == "nt"
            cause = error if found else f"there is no compiler {compiler}"
            failure = f"the build failed: {cause} (pip install -v shows more)"
        record(failure, self, in_place=self.inplace or self.editable_mode)


def extension():
    flags, link_flags = ["/O2", "/openmp"], []
    if os.name != "nt":
        openmp = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler has none
        optimise = ["-O0", "-g"] if os.environ.get("DEBUG") == "1" else ["-O3", "-g0"]
        # Contraction is explicit in the sources: every vector width gives the same bits.
        arithmetic = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
        flags = [*optimise, *arithmetic, "-Wall", "-fvisibility=hidden", *openmp]
        link_flags = openmp
    return CppExtension(
        "lhkernels._C",
        sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.cpp")),
        extra_compile_args=flags,
        extra_link_args=link_flags,
        py_limited_api=True,
        optional=True,  # commands that come later don't insist on the file
    )


setup(
    ext_modules=[extension()] if reason is None else [],
    cmdclass={"build_ext": BuildOptional, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if reason is None else {},
)
