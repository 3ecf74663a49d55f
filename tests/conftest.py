"""Settings that must stand before anything is imported, and speed."""

import os

# The Triton kernel's logic is tested on every machine; triton reads this when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Workers of pytest-xdist share the cores, as do the processes that tests start.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _interpreted_functions_are_patched_once():
    """Halves the time of interpreted kernels.

    Triton's interpreter goes through all of triton.language not only at a launch, but also at every
    call from one function to another, where the launch has done it.
    """
    try:
        from triton.runtime import interpreter

        tl, plain = interpreter.tl, interpreter._patch_lang
    except (ImportError, AttributeError):  # no triton, or one that does it another way
        yield
        return

    def patch(fn):
        modules = [m for m in fn.__globals__.values() if m is tl or m is tl.core]
        if modules and not any(tl.core.is_builtin(m.load) for m in modules):
            return interpreter._LangPatchScope()
        return plain(fn)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", patch)
        yield
