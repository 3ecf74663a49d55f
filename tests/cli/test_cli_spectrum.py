"""`python -m lhkernels spectrum`: rows, histogram, JSON, errors."""

import json

import pytest

from lhkernels.cli import main

SMALL = ["--model", "mlp", "--width", "0.1", "--image", "4", "--batch", "4"]


def test_a_row_for_each_block_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["spectrum", "--model", "vgg-small", "--width", "0.1", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert "features" in out
    assert max(len(line) for line in out.splitlines()) <= 80


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
        (["--model", "nothing"], "nothing"),
        (["--block", "nowhere", *SMALL], "nowhere"),
        (["--batch", "0"], "--batch"),
        (["--data", "nothing"], "nothing"),
        (["--init", "nothing"], "nothing"),
    ],
)
def test_errors_name_the_option(argv, named, capsys):
    assert main(["spectrum", *argv]) == 2
    assert named in capsys.readouterr().err
