"""`python -m lhkernels spectrum`: rows, histogram, JSON, errors."""

import json
import re

import pytest

from lhkernels.cli import errors, main, spectrum

SMALL = ["--model", "mlp", "--width", "0.1", "--image", "4", "--batch", "4"]


def refused(capsys, *argv):
    """The one line, after the usage if at all, that says why the command exits with status 2."""
    try:
        status = main(["spectrum", *argv])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    said = capsys.readouterr().err
    found = re.fullmatch(r"(usage: .*\n( .*\n)*)?(lhkernels spectrum: error: .*)\n", said)
    assert found, said
    return found[3]


def test_a_row_for_each_block_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["spectrum", "--model", "vgg-small", "--width", "0.1", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert "features" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_columns_that_do_not_fit_are_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["spectrum", *SMALL]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 40
    assert "…" not in out
    assert "(too narrow for: zero, mean, method," in out


def test_one_block_in_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["spectrum", "--list", *SMALL]) == 0
    name = capsys.readouterr().out.splitlines()[-1].split()[0]
    assert main(["spectrum", "--block", name, "--wrt", "input", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "condition" in out
    assert max(len(line) for line in out.splitlines()) <= 60


def test_json_is_the_same_for_the_same_seed(capsys):
    found = []
    for seed in ("0", "0", "1"):
        assert main(["spectrum", "--json", "--seed", seed, *SMALL]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] != found[2]


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "law.png"
    argv = ["--model", "linear", "--wrt", "input", "--init", "gaussian", "--plot", str(file)]
    assert main(["spectrum", *argv, "--width", "0.1"]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--model", "nothing"], "--model: invalid choice: 'nothing'"),
        (["--block", "nowhere", *SMALL], "nowhere"),
        (["--batch", "0"], "--batch: 0 is not a whole number >= 1"),
        (["--data", "nothing"], "--data: invalid choice: 'nothing'"),
        (["--init", "nothing"], "--init: invalid choice: 'nothing'"),
        (["--width", "nan"], "--width: nan is not a finite number > 0"),
        (["--image", "513"], "--image: 513 is not a whole number from 1 to 512"),
        (["--image", "8", "--data", "digits"], "--image 8: for --data synthetic only, not digits"),
        (["--seed", str(2**64)], "--seed: 18446744073709551616 is not"),
        (["--seed", str(-(2**63) - 1)], "--seed: -9223372036854775809 is not"),
        (["--batch", str(10**12)], "too large"),
        (["--batch", str(10**30)], "too large"),
        (["--model", "mlp", "--width", "1e300"], "too large"),
        (["--plot", "law.txt"], "--plot: law.txt: pass a name ending in .png"),
        (["--plot", ""], "--plot: : pass a name ending in .png"),
    ],
)
def test_errors_name_the_option(argv, named, capsys):
    assert named in refused(capsys, *argv)


def test_a_picture_that_can_t_be_written_is_refused_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(spectrum, "prepare", None)  # nothing may be computed
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert f"--plot: {folder} is a folder" in refused(capsys, *SMALL, "--plot", str(folder))
    monkeypatch.setattr(errors.os, "access", lambda path, mode: False)
    error = refused(capsys, *SMALL, "--plot", str(tmp_path / "law.png"))
    assert f"no permission to write to {tmp_path}" in error


def test_a_full_disk_is_told(tmp_path, capsys):
    """/dev/full takes the first byte and says that there is no room for it."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "law.png"
    file.symlink_to("/dev/full")
    assert main(["spectrum", "--model", "linear", "--width", "0.01", "--plot", str(file)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(": No space left on device")


def test_an_estimated_trace_is_shown_with_its_error(capsys):
    argv = ["spectrum", "--model", "resnet", "--batch", "1", "--image", "4", "--method", "slq"]
    options = [*argv, "--block", "3", "--probes", "2", "--steps", "3"]
    assert main(options) == 0
    assert re.search(r"^trace +\S+ ± \S+ *$", capsys.readouterr().out, re.MULTILINE)
    assert main([*options, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["blocks"][0]
    assert row["form"] == "autograd"
    assert row["trace_standard_error"] > 0
