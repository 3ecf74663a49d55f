"""``bench hvp``, ``scaling`` and ``report``: output is read, files are kept, bad input is told."""

import json
import re
from dataclasses import replace

import pytest
import torch

from bench import blocks, peers, scaling, step, timing
from lhkernels import _extension, environment
from lhkernels.cli import errors, main

TINY = blocks.Case("conv2d", 3, 4, 5, 4, 2)
NAMES = "lhkernels;double backward"
needs_extension = pytest.mark.skipif(
    _extension.reason() is not None, reason=f"no C++ extension: {_extension.reason()}"
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(blocks.CASES, "conv64", TINY)
    monkeypatch.setattr(timing, "busy_cores", lambda: 1.0)
    monkeypatch.setattr(environment, "machine", lambda device: "here")
    monkeypatch.setattr(scaling, "ELEMENTS_OF_TENSORS", 4000)
    monkeypatch.setattr(step, "measure_copy", lambda device: 10.0)


def hvp(*options):
    contenders = ["--contenders", NAMES, "--no-memory", "--device", "cpu"]
    return main(["bench", "hvp", "--cases", "conv64", "--seconds", "0.01", *contenders, *options])


def test_hvp_prints_a_table(capsys):
    assert hvp() == 0
    out, err = capsys.readouterr()
    assert re.search(r"conv64: conv2d 3->4 \+ BN at 4x4, N 5, K 2, dim 108, \d+ rounds", out)
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["lhkernels", "double"]
    assert max(map(len, out.splitlines())) <= 80
    assert "1.0 cores are busy" in err


def test_hvp_is_kept_and_reported(tmp_path, capsys, monkeypatch):
    assert hvp("--json", "--save", str(tmp_path / "results")) == 0
    report = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "results" / "here" / "hvp.json").read_text())
    assert kept == report
    assert [row["contender"] for row in kept["results"]] == NAMES.split(";")
    assert all(row["error"] < 1e-5 and row["peak_bytes"] is None for row in kept["results"])
    # Two vectors aren't worth the Gram matrix; with two more they are.
    assert [row["form"] for row in kept["results"]] == ["factored, then gram", None]
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- bench:hvp -->\nold\n<!-- /bench:hvp -->\nafter\n")
    arguments = ["bench", "report", "--results", "results"]
    assert main([*arguments, "--check"]) == 1
    assert "README.md is stale" in capsys.readouterr().err
    assert main([*arguments, "--write"]) == 0
    assert main([*arguments, "--check", "README.md"]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- bench:hvp -->\n| H V")
    assert "conv2d 3->4 + BN at 4x4, N 5, K 2 (" in text
    assert "([raw](results/here/hvp.json))" in text
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert [(t["table"], t["machine"]) for t in tables] == [("hvp", "here"), ("hvp-all", "here")]
    assert tables[0]["markdown"] in text


@needs_extension
def test_scaling_is_kept_and_drawn(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    small = replace(TINY, columns=1)
    monkeypatch.setattr(scaling, "STEP_NAMES", scaling.STEP_NAMES[:2])
    monkeypatch.setattr(scaling, "HVP_NAMES", scaling.HVP_NAMES[:2])
    monkeypatch.setitem(
        scaling.KINDS,
        "hvp-columns",
        lambda device, seconds: scaling.hvp_by_columns(device, seconds, block=small, sizes=(1, 2)),
    )
    options = ["--parts", "step-elements,hvp-columns", "--max-elements", "1e4", "--device", "cpu"]
    options += [
        "--seconds",
        "0.001",
        "--passes",
        "2",
        "--save",
        str(tmp_path),
        "--plots",
        str(tmp_path / "a"),
    ]
    assert main(["bench", "scaling", *options]) == 0
    assert "slopes, step-elements: torch fused" in capsys.readouterr().out
    kept = json.loads((tmp_path / "here" / "scaling.json").read_text())
    sizes = {(row["kind"], row["x"]) for row in kept["results"]}
    assert sizes == {
        *(("step-elements", 10**k) for k in (3, 4)),
        *(("hvp-columns", k) for k in (1, 2)),
    }
    assert set(kept["slopes"]["hvp-columns"]) == {"lhkernels", "double backward"}
    assert (
        main(["bench", "report", "--results", str(tmp_path), "--plots", str(tmp_path / "b")]) == 0
    )
    for name in ("scaling-step-elements.png", "scaling-hvp-columns.png"):
        for folder in "ab":
            assert (tmp_path / folder / name).read_bytes().startswith(b"\x89PNG")


@needs_extension
def test_roofline_is_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(step.MODELS, "vgg13", lambda: [(8, 3, 3, 3), (10, 8)])
    options = ["--models", "vgg13", "--seconds", "0.01", "--device", "cpu"]
    assert main(["bench", "step", *options, "--save", str(tmp_path)]) == 0
    assert main(["bench", "report", "--results", str(tmp_path), "--plots", str(tmp_path)]) == 0
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert "roofline.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["hvp", "--cases", "conv65"], "'conv65'"),
        (["hvp", "--contenders", "magic"], "'magic'"),
        (["hvp", "--seconds", "-1"], "--seconds -1"),
        (["hvp", "--device", "cuda"], "CUDA"),
        (["hvp", "--device", "abacus"], "abacus"),
        (["scaling", "--parts", "step"], "'step'"),
        (["scaling", "--max-elements", "10"], "--max-elements 10"),
        (["scaling", "--seconds", "nan"], "--seconds nan"),
        (["scaling", "--passes", "0"], "--passes 0"),
        (["scaling", "--max-elements", "inf"], "--max-elements inf"),
        (["hvp", "--seconds", "inf"], "--seconds inf"),
        (["report", "--results", "nowhere"], "nowhere"),
        (["report", "--machine", "abacus", "--results", "."], "abacus"),
        (["report", "--results", "."], "no results"),
        (["report", "--results", ".", "--plots", "x"], "no step.json"),
        (["report", "--results", ".", "--check", "nothing.md"], "nothing.md"),
    ],
)
def test_bad_options(options, word, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *options]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--save", "--plots"])
def test_what_can_t_be_written_is_refused_first(option, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "KINDS", None)  # nothing may be computed
    file = tmp_path / "file"
    file.touch()
    arguments = ["bench", "scaling", "--device", "cpu", option]
    assert main([*arguments, str(file)]) == 2
    assert f"{file} is no folder" in capsys.readouterr().err
    monkeypatch.setattr(errors.os, "access", lambda path, mode: False)
    assert main([*arguments, str(tmp_path / "new" / "folder")]) == 2
    assert f"no permission to write to {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["", "{}", '{"part": "hvp"}', "[1]"])
def test_broken_results_are_told(content, tmp_path, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "hvp.json").write_text(content)
    assert main(["bench", "report", "--results", str(tmp_path)]) == 2
    assert re.search(r"hvp.json is (no result|not what)", capsys.readouterr().err)


def test_unknown_peers_are_told_apart():
    assert not any(map(peers.is_peer, [peers.OURS, "lhkernels, gram"]))
    assert all(map(peers.is_peer, peers.PEERS))
