"""Errors that tell a person what to change; the command line prints them without a traceback."""

from __future__ import annotations

from collections.abc import Mapping


class TrainingError(Exception):
    """Something the user can put right: an option, a file, a missing package."""


class ConfigError(TrainingError, ValueError):
    """An option with a value that makes no sense."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(f"{option_name(field)} {shown(value) or '(empty)'}: {remedy}")


class DataError(TrainingError):
    """A data set that is missing, truncated or not what its name says."""


def option_name(field: str) -> str:
    """The command line's spelling of a field: ``batch_size`` -> ``--batch-size``."""
    return "--" + field.replace("_", "-")


def shown(value: object) -> str:
    """An option's value as one would type it."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={number:g}" for name, number in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
