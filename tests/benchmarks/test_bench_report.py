"""Kept results as tables: what is in a cell, which file it comes from, what is stale or missing."""

import json

import pytest

from bench import report
from lhkernels.cli.errors import CommandError

ENVIRONMENT = {"device": "abacus", "threads": 3, "torch": "9.9", "date": "2030-01-02T03:04:05"}


def step_row(contender, model, ms, ratio, elements=9_400_000):
    return {
        "contender": contender, "model": model, "ms": ms, "ratio": ratio, "elements": elements
    }  # fmt: skip


def hvp_row(contender, ms, ms_product, speedup, **fields):
    row = {
        "case": "a", "title": "block", "contender": contender, "form": None, "ms": ms,
        "dim": 10, "rounds": 3,
        "ms_product": ms_product, "ms_once": 1.0, "speedup": speedup,
        "speedup_product": 2 * speedup, "peak_bytes": 3 << 20, "error": 2e-7,
    }  # fmt: skip
    return row | fields


@pytest.fixture
def results(tmp_path):
    def keep(machine, file, rows, **extra):
        path = tmp_path / "results" / machine / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"environment": ENVIRONMENT, "results": rows, **extra}))

    keep(
        "one",
        "step.json",
        [
            step_row("torch fused", "vgg13", 4.4444, 1.0),
            step_row("lhkernels", "vgg13", 4.0, 0.9),
            step_row("torch fused", "transformer-7b", 1234.5, 1.0, 6_740_000_000),
        ],
    )
    rows = [
        hvp_row("lhkernels", 10.0, 0.5, 12.3, form="gram"),
        hvp_row("double backward", 123.4, 100.0, 1.0, peak_bytes=7 << 20, error=3e-6),
        hvp_row("vmap", 200.0, 99.0, 0.5, peak_bytes=5 << 20),
        hvp_row("large", None, None, 0.0, peak_bytes=None, error=None),
    ]
    keep("one", "hvp.json", rows)
    norms = {"group": "norms", "case": "a", "contender": "lhkernels", "ms": 1.234, "error": 1e-9}
    spectrum = {"group": "spectrum", "case": "block", "contender": "eigsh", "ms": 2.0}
    keep("one", "suite.json", [norms, spectrum | {"W1": None, "largest": 1e-7}])
    return tmp_path / "results"


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_step_table(results):
    lines = report.render("step", results, None, results.parent).splitlines()
    assert cells(lines[0])[1:] == ["VGG13, 9.4 M", "1 B, bf16, 6.74 B".replace("1 B", "7 B")]
    assert cells(lines[2]) == ["`torch.optim.SGD(fused=True)`", "4.44 ms", "1234 ms"]
    assert cells(lines[3]) == ["**`ScaleAmendedSGD`**", "**0.90**", ""]
    assert "abacus, 3 threads, torch 9.9, 2030-01-02 ([raw](results/one/step.json))" in lines[-1]
    assert "`python -m lhkernels bench step`" in lines[-1]


def test_hvp_tables(results):
    line = cells(report.render("hvp", results, None, results).splitlines()[2])
    assert line == [
        "block (gram)",
        "123 (double backward)",
        "10, **12.3x**",
        "0.5, **24.6x**",
        "3 (5)",
        "2e-07 (3e-06)",
    ]
    lines = report.render("hvp-all", results, "one", results / "one").splitlines()
    assert lines[0] == "**a: block, dim 10, 3 rounds**"
    assert cells(lines[4])[0] == "**lhkernels (gram)**"
    assert cells(lines[7])[:2] == ["large", "out of memory"]
    assert "([raw](hvp.json))" in lines[-1]


def test_tables_of_what_is_timed_alone(results):
    lines = report.render("norms", results, None, results).splitlines()
    assert cells(lines[0]) == ["norms", "", "ms", "error"]
    assert cells(lines[2]) == ["**a**", "**lhkernels**", "**1.23**", "**1.0e-09**"]
    lines = report.render("spectrum", results, None, results).splitlines()
    assert cells(lines[0]) == ["spectrum", "", "ms", "W1", "largest"]
    assert cells(lines[2]) == ["block", "eigsh", "2", "", "1.0e-07"]


def test_filling_changes_what_is_marked_alone(results):
    text = "a\n<!-- bench:step one -->\nold\n<!-- /bench:step -->\nb\n"
    text += "<!-- bench:norms -->\n<!-- /bench:norms -->\n"
    new = report.filled(text, results, results.parent)
    assert new.startswith("a\n<!-- bench:step one -->\n| `opt.step()`")
    assert "\n<!-- /bench:step -->\nb\n<!-- bench:norms -->\n| norms" in new
    assert "old" not in new
    assert report.filled(new, results, results.parent) == new
    assert report.filled("nothing\n", results, results) == "nothing\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<!-- bench:step -->\n", "1 tables are opened, but 0 of them well"),
        ("<!-- bench:step -->\n<!-- /bench:hvp -->\n", "opened"),
        ("<!-- bench:pace -->\n<!-- /bench:pace -->\n", "unknown table 'pace'"),
        ("<!-- bench:step two -->\n<!-- /bench:step -->\n", "two/step.json"),
        ("<!-- bench:slopes -->\n<!-- /bench:slopes -->\n", "bench scaling"),
    ],
)
def test_what_cannot_be_filled_is_told(results, text, word):
    with pytest.raises(CommandError, match=word):
        report.filled(text, results, results)


def test_several_machines_must_be_named(results):
    other = results / "two" / "step.json"
    other.parent.mkdir()
    other.write_text((results / "one" / "step.json").read_text())
    with pytest.raises(CommandError, match="one of one, two"):
        report.render("step", results, None, results)
    assert "two/step.json" in report.render("step", results, "two", results)


def test_parts_of_make_gpu_are_read(results):
    whole = report.render("step", results, None, results)
    path = results / "one" / "step.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({"part": "step", "status": "ok", "data": {"step": kept}}))
    assert report.render("step", results, None, results) == whole


def test_damaged_files_are_told(results):
    path = results / "one" / "step.json"
    for text in ("{", '{"environment": {}, "results": [{}]}'):
        path.write_text(text)
        with pytest.raises(CommandError, match="run it again"):
            report.render("step", results, None, results)
