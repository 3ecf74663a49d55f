"""bench/ is no package: its parts are imported from there."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))


@pytest.fixture
def context(tmp_path):
    """A part's context, with a minute to go."""
    import time

    from gpu_parts.runner import Context, Part

    part = Part("trial", "a trial", 60, lambda context: None)
    return Context(part, tmp_path, deadline=time.monotonic() + 60, dry_run=True)
