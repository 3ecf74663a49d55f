"""The C++ extension ``lhkernels._C``: loaded here alone, once, when somebody first asks for it."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import torch

from lhkernels import ops

_FAILURE = Path(__file__).with_name("_build_failure.txt")  # written by setup.py


def available() -> bool:
    """Whether ``torch.ops.lhkernels`` has the C++ operators; the first call loads them."""
    return reason() is None


@functools.cache
def reason() -> str | None:
    """Why the extension is missing, in one line; None if it is there."""
    try:
        extension = importlib.import_module("lhkernels._C")
    except ModuleNotFoundError:
        return f"the C++ extension is not built: {_why_not_built()}"
    except (ImportError, OSError) as error:
        cause = "built for another torch" if "undefined symbol" in str(error) else "broken"
        return f"the C++ extension does not load, it is {cause}; {_REINSTALL} ({error})"
    built_for, running = extension.TORCH_VERSION, torch.__version__
    if built_for.split(".")[:2] != running.split(".")[:2]:
        return f"the C++ extension was built for torch {built_for}, not {running}; {_REINSTALL}"
    ops.register_fakes()
    return None


_REINSTALL = "install lhkernels again with --no-build-isolation"


def _why_not_built() -> str:
    try:
        lines = _FAILURE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{_REINSTALL}, a C++ compiler and torch at hand"
    return next((line for line in lines if line.strip()), "for an unknown reason")
