"""bench/study.py: options, what it refuses, stopping and going on, drawing without training."""

import json
import math
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from sweep_cases import COMMITTED, TINY, lines_without_seconds, load_script, tiny_study

from lhkernels.training import sweep, sweep_plots
from lhkernels.training.experiments import PARTS
from lhkernels.training.sweep import ResultFile
from lhkernels.training.sweep_summary import choose_lr

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

study = load_script()


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Calls the script with the tiny preset; its exit status and what it printed on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "PRESETS", {"small": TINY})
    monkeypatch.setattr(sweep_plots, "DPI", 30)
    monkeypatch.delenv("LHKERNELS_DATA", raising=False)
    sweep._loaded.clear()

    def run(*arguments):
        try:
            status = study.main(list(arguments))
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        assert printed.out == ""
        return status, printed.err

    return run


@pytest.fixture
def trained(monkeypatch):
    configs, plain = [], sweep.train_one
    monkeypatch.setattr(sweep, "train_one", lambda c, d: configs.append(c) or plain(c, d))
    return configs


QUICK = ("--data", "digits", "--limit", "64", "--device", "cpu", "--out", "here")


def test_a_study_from_start_to_end_and_again(call, trained, tmp_path):
    status, err = call(*QUICK)
    assert status == 0
    file = ResultFile("here/runs.jsonl")
    assert len(trained) == len(file.results)
    written = {path.name for path in (tmp_path / "here").iterdir()}
    pictures = {f"study-{part}.png" for part in PARTS}
    texts = {"runs.jsonl", "environment.json", "summary.md", "summary.json"}
    assert written == pictures | texts
    # The learning rates were chosen before the curves were trained, on the same budget.
    tuning = [config for cell in tiny_study().tuning().values() for config in cell]
    assert trained[: len(tuning)] == tuning
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert summary["figure1"]["tuned_lr"] == choose_lr(tiny_study().tuning(), file)
    assert summary["environment"]["torch"] == torch.__version__
    diverged = sum(result["status"] == "diverged" for result in file.results.values())
    assert err.count("diverged in epoch") == diverged > 0
    assert "tuning 6/6: sa-sgd lr 0.01 decay 0.005 scale 1 width 0.25 depth 1 seed 100" in err

    before = {path: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    count = len(trained)
    assert call(*QUICK)[0] == 0
    assert len(trained) == count
    assert before == {path: path.read_bytes() for path in (tmp_path / "here").iterdir()}


def test_stopped_by_an_error_and_resumed_is_the_uninterrupted_file(call, trained, monkeypatch):
    only = ("--only", "figure1,depth")
    call(*QUICK[:-1], "whole", *only)
    whole = lines_without_seconds(study.Path("whole/runs.jsonl"))
    count, plain = len(trained), sweep.train_one
    trained.clear()

    def interrupted(config, device):
        if len(trained) == 9:
            raise KeyboardInterrupt
        return plain(config, device)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train_one", interrupted)
        status, err = call(*QUICK, *only)
    assert (status, len(trained)) == (130, 9)
    assert err.endswith("Interrupted; finished runs are saved. The same command goes on.\n")
    assert lines_without_seconds(study.Path("here/runs.jsonl")) == whole[:9]
    assert call(*QUICK, *only)[0] == 0
    assert len(trained) == count == len(whole)
    assert lines_without_seconds(study.Path("here/runs.jsonl")) == whole
    for name in ("summary.md", "summary.json"):
        assert study.Path("here", name).read_text() == study.Path("whole", name).read_text()


def test_a_time_budget_leaves_a_study_that_goes_on(call, trained, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: 60.0 * len(trained))  # a minute a run
    monkeypatch.setattr(sweep, "time", clock)
    monkeypatch.setattr(study, "time", clock)
    only = ("--only", "figure1,width")
    status, err = call(*QUICK, *only, "--minutes", "2.5")
    assert (status, len(trained)) == (1, 3)
    assert "figure1: lacks the runs that choose its learning rates; not summarised\n" in err
    assert "width: lacks 8 runs; not summarised\n" in err
    assert "about 3.0 min left" in err  # of six runs, a minute each
    assert not study.Path("here/summary.md").exists()
    status, err = call(*QUICK, *only, "--minutes", "6.5")
    assert (status, len(trained)) == (1, 10)
    assert "figure1: lacks" in err
    assert "width: lacks 8 runs" in err
    assert call(*QUICK, *only)[0] == 0
    assert (
        len(set(map(sweep.run_key, trained)))
        == len(trained)
        == len(ResultFile("here/runs.jsonl").results)
    )


def test_plots_and_summary_come_from_the_committed_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "train_one", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(sweep, "load", lambda *_: pytest.fail("loaded images"))
    for name in ("runs.jsonl", "environment.json"):
        shutil.copy(COMMITTED / name, tmp_path)
    options = ("--plots-only", "--preset", "small", "--data", "fashion-mnist")
    pictures = tmp_path / "pictures"
    assert study.main([*options, "--out", str(tmp_path), "--images", str(pictures)]) == 0
    for name in ("summary.md", "summary.json", "runs.jsonl", "environment.json"):
        assert (tmp_path / name).read_bytes() == (COMMITTED / name).read_bytes(), name
    for part in PARTS:
        drawn = (pictures / f"study-{part}.png").read_bytes()
        committed = (COMMITTED / f"study-{part}.png").read_bytes()
        assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
        # Another matplotlib draws other letters; the size it must agree on.
        assert struct.unpack(">II", drawn[16:24]) == struct.unpack(">II", committed[16:24])
    assert sorted(path.name for path in pictures.iterdir()) == sorted(
        f"study-{part}.png" for part in PARTS
    )


def test_plots_only_keeps_a_summary_that_it_can_not_make(tmp_path, capsys):
    for name in ("runs.jsonl", "summary.md"):
        shutil.copy(COMMITTED / name, tmp_path)
    status = study.main(["--plots-only", "--epochs", "3", "--out", str(tmp_path)])
    assert status == 1
    assert "width: lacks 32 runs" in capsys.readouterr().err
    assert (tmp_path / "summary.md").read_bytes() == (COMMITTED / "summary.md").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "figure9"), "--only figure9: 'figure9' is no part; parts: figure1, heatmap,"),
        (("--only", ""), "--only : '' is no part; parts: figure1,"),
        (("--preset", "huge"), "argument --preset: invalid choice: 'huge' (choose from"),
        (("--data", "mnist"), "argument --data: invalid choice: 'mnist' (choose from"),
        (("--device", "tpu"), "argument --device: invalid choice: 'tpu' (choose from"),
        (("--jobs", "0"), "argument --jobs: 0: give a whole number, at least 1"),
        (("--jobs", "-2"), "argument --jobs: -2: give a whole number, at least 1"),
        (("--jobs", "two"), "argument --jobs: two: give a whole number, at least 1"),
        (("--epochs", "1.5"), "argument --epochs: 1.5: give a whole number, at least 1"),
        (("--minutes", "0"), "argument --minutes: 0: give a number of minutes above 0"),
        (("--minutes", "-1"), "argument --minutes: -1: give a number of minutes above 0"),
        (("--minutes", "nan"), "argument --minutes: nan: give a number of minutes above 0"),
        (("--minutes", "soon"), "argument --minutes: soon: give a number of minutes above 0"),
        (("--limit", "1"), "--limit 1: must be a whole number, at least 2"),
        (("--epochs", "9999999"), "--epochs 9999999: must be a whole number, at least 1 and at m"),
        (("--data", "cifar10"), "cifar10: no folder is named; get the python or the binary ver"),
        (
            ("--data", "fashion-mnist", "--data-folder", "nowhere"),
            "Fashion-MNIST: not found in nowhere, nowhere/FashionMNIST/raw; apt install dataset-",
        ),
        (("--plots-only",), "--out here: holds no runs to draw; name the folder that does, or"),
    ],
)
def test_bad_options_are_named_before_anything_is_made(call, trained, options, message):
    status, err = call(*QUICK, *options)
    assert status == 2
    assert f"error: {message}" in err
    assert "Traceback" not in err
    assert trained == []
    assert not study.Path("here").exists()


def test_the_remedy_s_spelling_of_the_data_folder_is_understood(call):
    arguments = study.parser().parse_args(["--data-dir", "somewhere"])
    assert arguments.data_folder == "somewhere"
    assert study.make_experiments(arguments).options["data_dir"] == "somewhere"


def test_no_cuda_is_named(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, err = call(*QUICK, "--device", "cuda")
    assert (status, err.count("\n")) == (2, 1)
    assert "--device cuda: no CUDA device is available here; use cpu or auto" in err
    assert not study.Path("here").exists()


def test_a_folder_that_can_not_be_made_is_named(call, tmp_path):
    (tmp_path / "file").write_text("")
    status, err = call(*QUICK, "--only", "depth", "--out", "file/here")
    assert status == 2
    assert "--out file/here: can not be made (Not a directory); name another folder" in err
    assert call(*QUICK, "--only", "depth", "--images", "file")[0] == 2
    assert call(*QUICK, "--only", "depth")[0] == 0  # its runs were saved


def test_runs_of_two_machines_are_not_mixed(call, trained, tmp_path, monkeypatch):
    only = ("--only", "depth")
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: math.inf))
    assert call(*QUICK, *only, "--minutes", "1")[0] == 1
    noted = tmp_path / "here" / "environment.json"
    here = json.loads(noted.read_text())
    noted.write_text(json.dumps(here | {"cpu": "Abacus"}))
    status, err = call(*QUICK, *only)
    assert status == 2
    assert "--out here: its runs were made with cpu Abacus, here it is" in err
    assert "name another --out" in err
    for damaged in ("{", "[]"):
        noted.write_text(damaged)
        status, err = call(*QUICK, *only)
        assert status == 2
        assert "here/environment.json: is damaged" in err
        assert "delete it" in err
    assert trained == []


def test_a_damaged_line_is_named(call, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "runs.jsonl").write_text("no run\n")
    status, err = call(*QUICK, "--plots-only")
    assert status == 2
    assert "here/runs.jsonl, line 1: holds no finished run" in err
