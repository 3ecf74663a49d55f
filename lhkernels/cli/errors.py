"""What a command tells its user, who can mend it, instead of a traceback."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CommandError(Exception):
    """Printed as ``lhkernels COMMAND: error: MESSAGE``; the command exits with status 2."""


def check_writable(option: str, file: Path) -> None:
    """Refuse, before anything is computed, a ``file`` that could not be written afterwards."""
    if os.path.isdir(file):
        raise CommandError(f"{option} {file} is a folder; pass the name of a file")
    there = next((p for p in (file, *file.parents) if os.path.lexists(p)), Path())
    if there != file and not os.path.isdir(there):
        raise CommandError(f"{option} {file}: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise CommandError(f"{option} {file}: no permission to write to {there}")


@contextmanager
def writing(option: str, file: Path) -> Iterator[None]:
    """A CommandError for a full disk, and what else shows only when ``file`` is written."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{option} {file}: {error.strerror or error}") from error


def is_too_large(error: Exception) -> bool:
    """Whether memory did not suffice, or a size is beyond what torch can count."""
    if isinstance(error, (MemoryError, OverflowError)):
        return True
    pattern = r"can't allocate|out of memory|Overflow when unpacking|size calculation overflowed"
    return isinstance(error, (RuntimeError, TypeError)) and bool(re.search(pattern, str(error)))
