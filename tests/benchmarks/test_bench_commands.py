"""Every kind: contenders are right, output is read, files are kept and drawn, bad input is told."""

import json
import re
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from bench import blocks, common, hvp, scaling, step, suite, timing
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
    monkeypatch.setitem(step.MODELS, "vgg13", [(8, 3, 3, 3), (10, 8)])
    monkeypatch.setattr(common, "busy_cores", lambda: 1.0)
    monkeypatch.setattr(environment, "machine", lambda device: "here")
    monkeypatch.setattr(step, "measure_copy", lambda device: 10.0)


def status(*argv):
    """Of a command, whoever refuses its options."""
    try:
        return main(["bench", *map(str, argv)])
    except SystemExit as stop:
        return stop.code


def bench_hvp(*options):
    contenders = ["--contenders", NAMES, "--no-memory", "--device", "cpu"]
    return status("hvp", "--cases", "conv64", "--seconds", "0.01", *contenders, *options)


@pytest.mark.parametrize("wrt", ["weight", "input"])
@pytest.mark.parametrize("contender", blocks.CONTENDERS)
@pytest.mark.parametrize(
    "case", [TINY, blocks.Case("conv1d", 3, 4, 5, 4, 2), blocks.Case("linear", 5, 4, 9, 0, 3)]
)
def test_every_product_is_right(case, contender, wrt):
    if contender == "lhkernels, gram" and wrt == "input":
        pytest.skip("there is no such form")
    p = blocks.Problem(replace(case, wrt=wrt))
    exact = blocks.Problem(replace(case, wrt=wrt), dtype=torch.float64)
    assert torch.equal(exact.columns, p.columns.double())
    true = blocks.double_backward(exact)(exact.columns)
    found = blocks.CONTENDERS[contender](p)(p.columns)
    torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max())


def test_titles_say_the_block():
    titles = [case.title for case in (TINY, blocks.CASES["linear512-input"])]
    assert titles[0] == "conv2d 3->4 + BN at 4x4, N 5, K 2"
    assert titles[1] == "linear 512->512 + BN, N 2048, K 8, wrt input"


def test_hvp_prints_a_table(capsys):
    assert bench_hvp() == 0
    out, err = capsys.readouterr()
    assert re.search(r"conv64: conv2d 3->4 \+ BN at 4x4, N 5, K 2, dim 108, \d+ rounds", out)
    assert re.findall(r"(?m)^(lhkernels|double)\b", out) == ["lhkernels", "double"]
    assert max(map(len, out.splitlines())) <= 80
    assert "1.0 cores are busy" in err


def test_who_has_no_memory_has_no_figures(capsys, monkeypatch):
    def fail(p):
        raise torch.OutOfMemoryError

    monkeypatch.setitem(blocks.CONTENDERS, "double backward", fail)
    assert bench_hvp("--json") == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert rows[0]["ms"] > 0
    nothing = ("form", "ms", "ms_product", "ms_once", "speedup", "speedup_product", "error")
    assert not any(rows[1][field] for field in nothing)
    assert hvp.cells(rows)["rows"][1][1] == "out of memory"


@pytest.mark.skipif(not timing.PROC.exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_a_process_of_its_own(capsys, monkeypatch):
    monkeypatch.setitem(blocks.CASES, "conv1d", blocks.Case("linear", 512, 512, 4096, 0, 4))
    options = ["--contenders", "double backward, batched", "--seconds", "0.01", "--device", "cpu"]
    assert status("hvp", "--cases", "conv64,conv1d", *options, "--json") == 0
    small, large = (row["peak_bytes"] for row in json.loads(capsys.readouterr().out)["results"])
    output = 4 * 4096 * 512  # bytes, several times for each vector
    assert 0 <= small < output
    assert large > 4 * output


def test_hvp_is_kept_and_reported(tmp_path, capsys, monkeypatch):
    assert bench_hvp("--json", "--save", tmp_path / "results") == 0
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
    arguments = ["report", "--results", "results"]
    assert status(*arguments, "--check") == 1
    assert "README.md is stale" in capsys.readouterr().err
    assert status(*arguments, "--write") == 0
    assert status(*arguments, "--check", "README.md") == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- bench:hvp -->\n| H V")
    assert "conv2d 3->4 + BN at 4x4, N 5, K 2 (" in text
    assert "([raw](results/here/hvp.json))" in text
    capsys.readouterr()
    assert status(*arguments, "--json") == 0
    tables = json.loads(capsys.readouterr().out)
    assert [(t["table"], t["machine"]) for t in tables] == [("hvp", "here"), ("hvp-all", "here")]
    assert tables[0]["markdown"] in text
    assert status(*arguments) == 0
    assert f"<!-- bench:hvp here -->\n{tables[0]['markdown']}" in capsys.readouterr().out


@needs_extension
def test_scaling_is_kept_and_drawn(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(scaling, "STEP_NAMES", scaling.STEP_NAMES[:2])
    monkeypatch.setattr(scaling, "HVP_NAMES", scaling.HVP_NAMES[:2])
    monkeypatch.setattr(scaling, "BLOCK", TINY)
    monkeypatch.setitem(scaling.PARTS, "hvp-columns", ("vectors K", (1, 2)))
    options = ["--parts", "step-elements,hvp-columns", "--max-elements", "1e4", "--device", "cpu"]
    options += ["--seconds", "0.001", "--passes", "2", "--save", tmp_path]
    assert status("scaling", *options, "--plots", tmp_path / "a") == 0
    out = capsys.readouterr().out
    assert re.search(r"step-elements: ms\s+elements\s+torch fused", out)
    assert "slope" in out
    kept = json.loads((tmp_path / "here" / "scaling.json").read_text())
    sizes = {(row["kind"], row["x"]) for row in kept["results"]}
    assert sizes == {
        *(("step-elements", 10**k) for k in (3, 4)),
        *(("hvp-columns", k) for k in (1, 2)),
    }
    assert kept["passes"] == 2
    assert set(kept["slopes"]["hvp-columns"]) == {"lhkernels", "double backward"}
    assert status("report", "--results", tmp_path, "--plots", tmp_path / "b") == 0
    for name in ("scaling-step-elements.png", "scaling-hvp-columns.png"):
        for folder in "ab":
            assert (tmp_path / folder / name).read_bytes().startswith(b"\x89PNG")


def test_scaling_takes_the_median_of_passes(monkeypatch):
    passes = iter([[(1, 5.0, 2.0), (2, 9.0, 1.0)], [(1, 900.0, 3.0), (2, 8.0, 2.0)],
                   [(1, 6.0, 4.0), (2, None, None)]])  # fmt: skip

    def points(args, part):
        for x, ms, product in next(passes):
            yield x, [{"contender": "ours", "ms": ms, "ms_product": product}]

    monkeypatch.setattr(scaling, "points", points)
    args = Namespace(plots=None, passes=3, parts=["hvp-batch"])
    (rows,) = scaling.measure(args)
    assert [(r["x"], r["ms"], r["ms_product"]) for r in rows] == [(1, 6.0, 3.0), (2, 8.5, 1.5)]
    assert {(r["kind"], r["contender"]) for r in rows} == {("hvp-batch", "ours")}


@pytest.mark.parametrize(
    ("gigabytes", "sizes"), [(1, [3, 4, 5, 6]), (0.7, [3, 4, 5, 6]), (0.2, [3, 4, 5])]
)
def test_elements_are_as_many_as_memory_holds(gigabytes, sizes, monkeypatch):
    compared = []
    monkeypatch.setattr(step, "compare", lambda args, *compare: compared.append(compare))
    monkeypatch.setattr(scaling, "available", lambda device: int(gigabytes * 1e9 / 4))
    args = Namespace(device=None, max_elements=1e9)
    found = [x for x, _ in scaling.points(args, "step-elements")]
    assert found[: len(sizes)] == [10**k for k in sizes]
    for x, (matrices, names) in zip(found, compared):
        assert sum(a * b for a, b in matrices) == x // 4 * 4
        assert 3 * 4 * x * len(names) < gigabytes * 1e9 / 4


@pytest.mark.parametrize("slope", [0.0, 0.7, 2.0])
def test_fitted_slopes_are_those_of_the_upper_end(slope):
    curve = {1: 7.0, 10: 7.0, **{x: 3 * x**slope for x in (100, 1000, 10000)}}
    found, ends = scaling.fit(curve, "hvp-batch")
    assert found == pytest.approx(slope, abs=1e-12)
    assert ends == pytest.approx({100: 3 * 100**slope, 10000: 3 * 10000**slope})
    assert scaling.fit({1: 2.0}, "hvp-batch") is None
    _, ends = scaling.fit(curve, "step-tensors")
    assert list(ends) == [1000, 10000]


@needs_extension
def test_roofline_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = ["--models", "vgg13", "--seconds", "0.01", "--device", "cpu"]
    assert status("step", *options, "--save", tmp_path) == 0
    assert status("report", "--results", tmp_path, "--plots", tmp_path) == 0
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert "roofline.png" in capsys.readouterr().out


def test_norms_and_spectra_are_right(capsys, monkeypatch, tmp_path):
    pytest.importorskip("scipy")
    monkeypatch.setattr(suite, "CPU_MODELS", ["vgg13"])
    monkeypatch.setitem(suite.BLOCKS, "conv", blocks.Case("conv2d", 4, 8, 8, 6, 1))
    monkeypatch.setitem(suite.BLOCKS, "linear", blocks.Case("linear", 32, 4, 128, 0, 1, False))
    assert status("suite", "--save", tmp_path) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("torch.dot", "eigsh, our products", "linear 32->4"))
    rows = json.loads((tmp_path / "here" / "suite.json").read_text())["results"]
    norms = [row for row in rows if row["group"] == "norms"]
    assert {row["contender"] for row in norms} >= set(suite.NORMS) - {"lhkernels"}
    assert all(row["case"] == "vgg13" and row["error"] < 1e-5 and row["ms"] > 0 for row in norms)
    spectra = [row for row in rows if row["group"] == "spectrum"]
    assert len(spectra) == 12
    assert all(row["largest"] < 1e-3 for row in spectra)
    exact = [row["W1"] for row in spectra if re.search("exact|eigvalsh", row["contender"])]
    assert len(exact) == 4
    assert max(exact) < 1e-6
    assert all(row["W1"] < 0.1 for row in spectra if row["W1"] is not None)
    assert sum(row["W1"] is None for row in spectra) == 4  # ARPACK


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["step", "--models", "vgg14"], "--models.*'vgg14' is unknown.*resnet50"),
        (["step", "--contenders", "adam"], "--contenders.*'adam'.*torch fused"),
        (["step", "--seconds", "0"], "--seconds.*0 is not .*> 0; pass such as"),
        (["step", "--device", "cuda"], "--device.*CUDA.*pass cpu"),
        (["hvp", "--cases", "conv65"], "--cases.*'conv65'"),
        (["hvp", "--contenders", "magic"], "--contenders.*'magic'"),
        (["hvp", "--seconds", "-1"], "--seconds.*-1"),
        (["hvp", "--seconds", "inf"], "--seconds.*inf"),
        (["hvp", "--device", "abacus"], "--device.*abacus.*pass auto"),
        (["scaling", "--parts", "step"], "--parts.*'step'.*step-tensors"),
        (["scaling", "--max-elements", "10"], "--max-elements.*10 is not finite and >= 1000"),
        (["scaling", "--max-elements", "inf"], "--max-elements.*inf"),
        (["scaling", "--seconds", "nan"], "--seconds.*nan"),
        (["scaling", "--passes", "0"], "--passes.*0 is not .*>= 1"),
        (["report", "--results", "nowhere"], "nowhere"),
        (["report", "--machine", "abacus", "--results", "."], "abacus"),
        (["report", "--results", "."], "no results"),
        (["report", "--results", ".", "--plots", "x"], "no step.json"),
        (["report", "--results", ".", "--check", "nothing.md"], "nothing.md"),
    ],
)
def test_bad_options(options, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert status(*options) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--save", "--plots"])
def test_what_can_t_be_written_is_refused_first(option, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "points", None)  # nothing may be computed
    file = tmp_path / "file"
    file.touch()
    arguments = ["scaling", "--device", "cpu", option]
    assert status(*arguments, file) == 2
    assert f"{file} is no folder" in capsys.readouterr().err
    monkeypatch.setattr(errors.os, "access", lambda path, mode: False)
    assert status(*arguments, tmp_path / "new" / "folder") == 2
    assert f"no permission to write to {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["", "{}", '{"part": "hvp"}', "[1]"])
def test_broken_results_are_told(content, tmp_path, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "hvp.json").write_text(content)
    assert status("report", "--results", tmp_path) == 2
    assert re.search(r"hvp.json is (no result|not what)", capsys.readouterr().err)
