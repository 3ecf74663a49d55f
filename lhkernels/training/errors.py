"""Errors that tell a person what to change; the command line prints them without a traceback."""

from __future__ import annotations

import torch


class TrainingError(Exception):
    """Something the user can put right: an option, a file, a missing package."""


class ConfigError(TrainingError, ValueError):
    """An option with a value that makes no sense."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        shown = "(empty)" if value == "" else value
        super().__init__(f"{option_name(field)} {shown}: {remedy}")


class DataError(TrainingError):
    """A data set that is missing, truncated or not what its name says."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's or NumPy's, CUDA's, or torch's on a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def option_name(field: str) -> str:
    """The command line's spelling of a field: ``batch_size`` -> ``--batch-size``."""
    return "--" + field.replace("_", "-")
