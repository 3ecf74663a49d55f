"""What options take: ``type=`` functions for argparse, which check a value where it is read.

Their errors name the value and what to pass instead; argparse puts the option before them, prints
that on stderr and exits with status 2.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import torch

from lhkernels.cli.errors import CommandError, check_writable

T = TypeVar("T", int, float)


def number(parse: Callable[[str], T], holds: Callable[[T], bool], what: str) -> Callable[[str], T]:
    """A type: numbers that ``parse`` reads and that hold; ``what`` they are, and the remedy."""

    def convert(word: str) -> T:
        try:
            value = parse(word)
        except ValueError:
            raise ArgumentTypeError(f"{word!r} is not {what}") from None
        if not holds(value):
            raise ArgumentTypeError(f"{word} is not {what}")
        return value

    return convert


def at_least(least: int) -> Callable[[str], int]:
    """A type: whole numbers from ``least`` on."""
    return number(int, lambda n: n >= least, f"a whole number >= {least}; pass such as {least}")


positive_int = at_least(1)
positive = number(float, lambda x: 0 < x < math.inf, "a finite number > 0; pass such as 1")
seed = number(
    int, lambda n: -(2**63) <= n < 2**64, "a whole number that fits 64 bits; pass such as 0"
)


def names(known: Callable[[], Collection[str]], separator: str = ",") -> Callable[[str], list[str]]:
    """A type: one or several of the names that are ``known`` by then."""

    def convert(text: str) -> list[str]:
        found = [name.strip() for name in text.split(separator)]
        for name in found:
            if name not in known():
                some = f"{separator} ".join(known())
                raise ArgumentTypeError(f"{name!r} is unknown here; choose of {some}")
        return found

    return convert


def device(text: str) -> torch.device:
    """A type: a device that is there; ``auto`` is the GPU, if there is one."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(text)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise ArgumentTypeError(f"{text} is no device for this; pass auto, cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentTypeError(f"{text}, but torch finds no CUDA device; pass cpu")
    return found


def picture(text: str) -> Path:
    """A type: the name of a PNG file that can be written."""
    file = Path(text)
    if file.suffix != ".png" or not file.parent.is_dir():
        raise ArgumentTypeError(f"{text}: pass a name ending in .png in a folder that exists")
    try:
        check_writable("", file)
    except CommandError as error:
        raise ArgumentTypeError(str(error).strip()) from error
    return file
