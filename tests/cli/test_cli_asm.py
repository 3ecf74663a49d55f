"""``lhkernels asm``."""

from __future__ import annotations

import argparse
import json

import pytest

pytest.importorskip("triton")

from lhkernels import asm
from lhkernels.cli import asm as command
from lhkernels.cli.errors import CommandError


@pytest.fixture(scope="module")
def compiled():
    """What the command gets for float32 on an A100."""
    return asm.cross_compile(asm.variants(["float32"]), 80)


@pytest.fixture
def asked(compiled, monkeypatch):
    """What the command asks to have compiled; it is answered with ``compiled``."""
    calls = []
    monkeypatch.setattr(asm, "cross_compile", lambda *args: calls.append(args) or compiled)
    return calls


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser(prog="lhkernels")
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["asm", *argv])
    return args.run(args)


def test_table(capsys, asked):
    assert run("--arch", "80", "--dtype", "float32") == 0
    assert asked == [(asm.variants(["float32"]), 80)]
    out = capsys.readouterr().out
    assert out.startswith("sm_80 (A100): 128 threads")
    assert max(map(len, out.splitlines())) <= 80
    (row,) = [line.split() for line in out.splitlines() if line.startswith("step ")][:1]
    assert row[:4] == ["step", "fp32", "fp32", "fp32"]
    assert row[5] == "0"  # bytes spilled
    assert row[7:12] == ["6", "0", "4", "0", "6+4"]


def test_json(capsys, asked):
    assert run("--dtype", "bfloat16", "--json") == 0
    assert asked == [(asm.variants(["bfloat16"]), 90)]
    rows = json.loads(capsys.readouterr().out)
    assert [(row["kernel"], row["momentum"]) for row in rows] == [
        ("step", "float32"),
        ("refresh", None),
    ]
    assert {row["arch"] for row in rows} == {80}
    assert rows[0]["loads"] == {"128": 6}
    assert rows[0]["spill_bytes"] == 0
    assert rows[0]["bytes_in_flight"] > 0


@pytest.mark.usefixtures("asked")
def test_ptx(capsys):
    assert run("--arch", "80", "--dtype", "float32", "--ptx") == 0
    out = capsys.readouterr().out
    assert ".target sm_80" in out
    assert ".entry step_kernel" in out
    assert ".entry refresh_kernel" in out


@pytest.mark.parametrize("argv", [("--arch", "42"), ("--dtype", "float8"), ("--json", "--ptx")])
def test_bad_arguments(argv, capsys):
    with pytest.raises(SystemExit) as error:
        run(*argv)
    assert error.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_what_fails_is_a_command_error(monkeypatch):
    def fail(*_):
        raise asm.CompileError("triton is not installed")

    monkeypatch.setattr(asm, "cross_compile", fail)
    with pytest.raises(CommandError, match="triton is not installed"):
        run()
