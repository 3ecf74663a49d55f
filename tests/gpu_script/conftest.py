"""bench/ is no package: its parts are imported from there."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))

from gpu_parts import runner  # noqa: E402
from gpu_parts.runner import Context, Part  # noqa: E402


@pytest.fixture
def context(tmp_path):
    """A part's context in a dry run, with all the time in the world."""
    part = Part("trial", "a trial", 60, lambda context: None)
    return Context(part, tmp_path, deadline=time.monotonic() + 1e9, dry_run=True)


@pytest.fixture
def time_is_up(monkeypatch):
    """``time_is_up(ready)``: a command's limit has passed once ``ready()``, however long it took.

    The clock stands still but for that; an interrupted command gets ``grace`` real seconds.
    """
    now = [0.0]

    def arrange(ready=lambda: True, grace=1e6):
        class Popen(subprocess.Popen):
            def wait(self, timeout=None):
                if timeout is None or timeout == grace:
                    return super().wait(timeout)
                while not ready():
                    assert self.poll() is None, "it ended before its time was up"
                    time.sleep(0.01)
                now[0] += timeout
                raise subprocess.TimeoutExpired(self.args, timeout)

        monkeypatch.setattr(runner, "GRACE", grace)
        monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: now[0]))
        patched = SimpleNamespace(**{**vars(subprocess), "Popen": Popen})
        monkeypatch.setattr(runner, "subprocess", patched)

    return arrange


@pytest.fixture
def survivor(tmp_path):
    """A deaf process's code, a test whether it runs, and a wait for its end, which must be early.

    It ends by itself some day and says so: then nobody has ended it.
    """
    pid, lived = tmp_path / "pid", tmp_path / "lived"
    code = (
        "import os, signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; "
        f"open({str(pid) + '.new'!r}, 'w').write(str(os.getpid())); "
        f"os.replace({str(pid) + '.new'!r}, {str(pid)!r}); "
        f"time.sleep(300); open({str(lived)!r}, 'w')"
    )

    def ended():
        state = Path(f"/proc/{pid.read_text()}/stat")
        while state.exists() and state.read_text().split()[2] != "Z":  # Z: its parent must look
            time.sleep(0.01)
        return not lived.exists()

    return SimpleNamespace(code=code, runs=pid.exists, ended=ended)
