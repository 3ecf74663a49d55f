"""bench/gpu.py: parts are selected, bad options told, and a dry run leaves a summary."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from gpu_parts import predictions, registry, summary

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "bench" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(text):
    return [part.name for part in registry.select(text)]


def test_parts_and_groups():
    assert names(None) == list(registry.PARTS)
    assert names("dram, step") == ["dram", "step"]
    assert names("study") == list(registry.STUDY)
    assert names("width,study") == ["width", *(n for n in registry.STUDY if n != "width")]
    with pytest.raises(ValueError, match="'dramm' is unknown; choose of tests, "):
        registry.select("step,dramm")


def test_the_page_lists_the_parts(gpu, capsys):
    page = (ROOT / "docs" / "gpu.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (.*) \|$", page, re.M)
    assert rows == [(p.name, f"{p.limit:.0f}", p.title) for p in registry.PARTS.values()]
    assert all(float(limit) < 600 for _, limit, _ in rows)
    planned = re.findall(r"--total (\d+) --archive \S+ ([a-z ]+[a-z])(?: --|$)", page, re.M)
    parts = [part for _, words in planned for part in names(words.replace(" ", ","))]
    assert sorted(parts) == sorted(registry.PARTS)
    assert sum(int(total) for total, _ in planned) <= 1700
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        *registry.PARTS,
        *registry.GROUPS,
    ]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--parts", "stepp"], "'stepp'"),
        (["--dry-run", "stepp"], "'stepp'"),
        (["--dry-run", "--limit", "0"], "--limit 0.0 is not > 0"),
        (["--dry-run", "--total", "nan"], "--total nan"),
        (["--dry-run", "--jobs", "-1"], "--jobs -1"),
        (["--dry-run", "--data-folder", "/no/where"], "/no/where is no folder"),
        (["asm"], "no CUDA device"),
        (["--summary"], "--out"),
    ],
)
def test_bad_options(gpu, options, word, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu.main(options)
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


def test_results_of_a_gpu_and_of_a_dry_run_are_not_mixed(gpu, tmp_path, capsys):
    (tmp_path / "asm.json").write_text(json.dumps({"part": "asm", "dry_run": False}))
    with pytest.raises(SystemExit):
        gpu.main(["--dry-run", "asm", "--out", str(tmp_path)])
    assert "holds a GPU's results (asm.json)" in capsys.readouterr().err


def test_a_dry_run_from_end_to_end(gpu, tmp_path, capsys):
    out, packed = tmp_path / "out", tmp_path / "all.tar.gz"
    options = ["--dry-run", "launches", "--out", str(out), "--archive", str(packed)]
    assert gpu.main(options) == 0
    assert "results in" in capsys.readouterr().out
    record = json.loads((out / "launches.json").read_text())
    assert record["status"] == "ok"
    assert record["dry_run"]
    assert "lhkernels" in {row["optimizer"] for row in record["data"]["launches"]}
    text = (out / "summary.md").read_text()
    assert "Dry run on a CPU" in text
    assert "| launches | ok |" in text
    assert "nan" not in text
    assert packed.exists()
    assert json.loads((out / "environment.json").read_text())["dry run"]


def test_a_part_that_fails_is_in_the_exit_status(gpu, tmp_path, capsys, time_is_up):
    time_is_up()
    out = tmp_path / "out"
    assert gpu.main(["--dry-run", "launches", "--limit", "0.2", "--out", str(out)]) == 1
    assert "NOT OK: launches" in capsys.readouterr().out
    assert "| launches | out of time |" in (out / "summary.md").read_text()


def test_a_summary_of_damaged_and_partial_results(tmp_path):
    (tmp_path / "asm.json").write_text("{")
    partial = {"part": "launches", "title": "t", "status": "failed", "seconds": 1.0}
    partial |= {"message": "a | b", "data": {"launched": []}}
    (tmp_path / "launches.json").write_text(json.dumps(partial))
    text = summary.write(tmp_path).read_text()
    assert "| launches | failed | 1 | a \\| b |" in text
    assert "see the JSON" in text
    assert "asm" not in text


def test_predictions_are_judged():
    assert predictions.verdict(1.0, (0.9, 1.1)) == "as predicted"
    assert predictions.verdict(2.0, (0.9, 1.1)) != predictions.verdict(0.5, (0.9, 1.1))
