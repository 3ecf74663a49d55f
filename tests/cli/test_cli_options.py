"""Types of options: what they read, and what they say of what they refuse."""

import argparse

import pytest
import torch

from lhkernels.cli import errors, options


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (options.positive_int, "12", 12),
        (options.positive, "1e-3", 1e-3),
        (options.at_least(0), "0", 0),
        (options.seed, "-3", -3),
        (options.names(lambda: ("a", "b", "c")), "c, a", ["c", "a"]),
        (options.device, "cpu", torch.device("cpu")),
    ],
)
def test_values(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (options.positive_int, "0", "0 is not a whole number >= 1; pass such as 1"),
        (options.positive_int, "2.5", "'2.5' is not a whole number >= 1"),
        (options.at_least(2), "1", "1 is not a whole number >= 2; pass such as 2"),
        (options.positive, "0", "0 is not a finite number > 0; pass"),
        (options.positive, "nan", "nan is not a finite number > 0"),
        (options.positive, "inf", "inf is not a finite number > 0"),
        (options.positive, "wide", "'wide' is not a finite number > 0"),
        (options.seed, str(2**64), "18446744073709551616 is not .* 64 bits; pass such as 0"),
        (options.seed, str(-(2**63) - 1), "-9223372036854775809 is not"),
        (options.names(lambda: ("a", "b")), "a,d", "'d' is unknown here; choose of a, b"),
        (options.device, "gpu", "gpu is no device for this; pass auto, cpu or cuda"),
        (options.device, "meta", "meta is no device for this"),
        (options.picture, "law.txt", "law.txt: pass a name ending in .png in a folder that exists"),
        (options.picture, "", "pass a name ending in .png"),
        (options.picture, "nowhere/law.png", "nowhere/law.png: pass .* folder that exists"),
    ],
)
def test_errors_name_the_value_and_the_remedy(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)


def test_a_device_that_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert options.device("auto") == torch.device("cpu")
    with pytest.raises(argparse.ArgumentTypeError, match="finds no CUDA device; pass cpu"):
        options.device("cuda")


def test_pictures_that_can_not_be_written(tmp_path, monkeypatch):
    assert options.picture(str(tmp_path / "law.png")) == tmp_path / "law.png"
    folder = tmp_path / "folder.png"
    folder.mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match=r"folder.png is a folder; pass the name"):
        options.picture(str(folder))
    monkeypatch.setattr(errors.os, "access", lambda path, mode: False)
    with pytest.raises(argparse.ArgumentTypeError, match="no permission to write to"):
        options.picture(str(tmp_path / "law.png"))
