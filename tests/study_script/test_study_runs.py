"""Runs of bench/study.py: what they start from, what is kept, stopping and going on, options."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from script_cases import ROOT, TINY, a_study, made_line, pick, study

from lhkernels.training import TrainConfig, TrainingError
from lhkernels.training import data as data_module
from lhkernels.training.config import DEFAULTS
from lhkernels.training.loop import Run
from lhkernels.training.sources import RawData

CPU = torch.device("cpu")
RUNS = study.Path("here/runs.jsonl")


def tiny_config(name="sgd", lr=0.01, **options):
    options = {**TINY, "epochs": 2, **options}
    return TrainConfig(optimizers=(name,), lr={name: lr}, **options)


def lines(path=RUNS):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["key"] for line in found}) == len(found)
    return sorted(({**line, "seconds": 0} for line in found), key=lambda line: line["key"])


@pytest.mark.parametrize("part", ["figure1", *study.GRIDS])
@pytest.mark.parametrize("preset", ["small", "full"])
def test_both_optimizers_get_the_same_grid_and_the_same_budget(preset, part, made_up):
    asked = made_up(lambda config: {"validation_error": abs(pick(config)[1] - 0.03)})
    {"figure1": study.figure1}.get(part, study.grid)(a_study(preset, data="fashion-mnist"), part)
    paper, seen = DEFAULTS["cifar10"].lr, {name: [] for name in study.COMPARED}
    for config in asked:
        name, lr, seed = pick(config)
        lr = "paper" if part == "figure1" and seed < 100 and lr == paper[name] else lr
        seen[name].append(json.dumps(config.to_dict() | {"lr": lr, "optimizers": None}))
    assert sorted(seen["sgd"]) == sorted(seen["sa-sgd"])
    sizes = {"heatmap": 60, "heatmap-no-decay": 60, "width": 32, "depth": 24}
    assert len(asked) == sizes.get(part, {"small": 24 + 20, "full": 12 + 12}[preset])
    assert {seed for *_, seed in map(pick, asked)} <= {100, 101, *range(5)}


def test_the_test_data_decide_nothing_but_the_last_figures(call, monkeypatch):
    looks, evaluate = [], Run.evaluate
    monkeypatch.setattr(Run, "evaluate", lambda run: looks.append(run) or evaluate(run))
    call("--only", "figure1")
    first = lines()
    assert len(looks) == sum(line["status"] == "ok" for line in first) > 4  # once each
    assert all(len(run.history) == 2 for run in looks)
    study.images.cache_clear()
    raw = data_module.load_raw("digits", None)
    shifted = vars(raw) | {"test_labels": (raw.test_labels + 1) % 10}
    monkeypatch.setattr(data_module, "load_raw", lambda *_: RawData(**shifted))
    call("--only", "figure1", "--out", "there")
    for line, other in zip(first, lines(study.Path("there/runs.jsonl")), strict=True):
        assert (line["key"], line["history"]) == (other["key"], other["history"])
        same = line["final"]["test_loss"] == other["final"]["test_loss"]
        assert same == (line["status"] == "diverged")


def test_a_line_has_the_run_as_it_was():
    config = tiny_config("sa-sgd", 0.03, epochs=3)
    run = Run(config, config.run_keys()[0], data_module.load(config), CPU)
    records = [run.run_epoch(test=epoch == 3) for epoch in (1, 2, 3)]
    line = study.train_one(config, CPU)
    assert (line["key"], line["status"]) == (study.run_key(config.to_dict()), "ok")
    for name in study.HISTORY:
        assert line["history"][name] == pytest.approx([r[name] for r in records], rel=1e-5)
    assert line["final"] == pytest.approx({k: records[-1][k] for k in study.FINAL}, rel=1e-5)
    line = study.train_one(tiny_config(lr=1e30), CPU)
    assert (line["status"], set(line["final"].values())) == ("diverged", {None})
    assert [len(column) for column in line["history"].values()] == [line["epochs"]] * 4
    assert line["history"]["train_loss"][-1] is None


def test_a_run_is_known_by_what_decides_it_and_has_its_own_images(monkeypatch):
    loaded, plain = [], study.load
    monkeypatch.setattr(study, "load", lambda config: loaded.append(config) or plain(config))
    changes = ({}, {"seeds": (3,)}, {"width": 0.5}, {"weight_decay": 0.0}, {"lr": 0.02},
               {"limit": 32}, {"validation": 20}, {"shrink": 2}, {"model": "vgg11"})  # fmt: skip
    configs = [tiny_config(epochs=1, **options) for options in changes]
    assert len({study.train_one(config, CPU)["key"] for config in configs}) == len(changes)
    assert [vars(config)[name] for config, change in zip(loaded[1:], changes[5:], strict=True)
            for name in change] == [32, 20, 2, "vgg11"]  # fmt: skip
    assert study.images.cache_info().currsize == 1
    elsewhere = tiny_config(epochs=1, data_dir="/elsewhere", device="cpu")
    assert study.run_key(elsewhere.to_dict()) == study.run_key(configs[0].to_dict())


def test_a_study_from_start_to_end_and_again(call, trained, tmp_path):
    status, out, err = call()
    assert (status, out) == (0, (tmp_path / "here/summary.md").read_text())
    written = {path: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    pictures = {f"study-{part}.png" for part in ("figure1", *study.GRIDS)}
    texts = {"runs.jsonl", "environment.json", "summary.md"}
    assert {path.name for path in written} == pictures | texts
    assert [pick(config)[1:] for config in trained[:3]] == [(lr, 100) for lr in study.LRS]
    assert err.count("status diverged") == sum(line["status"] == "diverged" for line in lines()) > 0
    assert "tuning 6/6: lr {'sa-sgd': 0.01}, weight_decay 0.005, init_scale 1.0, width 0.25" in err
    assert call() == (0, out, "")
    assert {path: path.read_bytes() for path in (tmp_path / "here").iterdir()} == written
    assert len(trained) == len(lines())
    assert call("--plots-only", "--images", "there")[0] == 0
    assert {path.name for path in (tmp_path / "there").iterdir()} == pictures


@pytest.mark.parametrize(("error", "says"), [
    (KeyboardInterrupt, "Interrupted; finished runs are saved. The same command goes on.\n"),
    (TrainingError("stop"), "study: error: stop\n"),
    (OSError(errno.ENOSPC, "No space left"), "No space left; finished runs are saved: make room"),
])  # fmt: skip
def test_stopped_and_resumed_is_as_if_it_had_not_been(call, trained, monkeypatch, error, says):
    assert call("--only", "depth", "--out", "whole")[0] == 0
    whole, count = lines(study.Path("whole/runs.jsonl")), []
    trained.clear()
    with monkeypatch.context() as patch:
        where = "train_one" if error is KeyboardInterrupt else "append_run"
        plain = getattr(study, where)

        def stop(*arguments):
            count.append(1)
            if len(count) == 4:
                raise error
            return plain(*arguments)

        patch.setattr(study, where, stop)
        status, _, err = call("--only", "depth")
    assert (status, says in err) == (130 if error is KeyboardInterrupt else 2, True)
    assert len(lines()) == 3
    RUNS.write_text(RUNS.read_text() + '{"key": "0123", "conf')  # a line that a kill cut short
    trained.clear()
    assert call("--only", "depth")[0] == 0
    assert (len(trained), lines()) == (len(whole) - 3, whole)
    whole, here = (study.Path(out, "summary.md").read_text() for out in ("whole", "here"))
    assert whole == here


@pytest.mark.skipif(sys.platform != "linux", reason="finds the jobs in /proc")
@pytest.mark.parametrize("sent", ["SIGINT", "a job's SIGKILL"])
def test_stopped_with_two_jobs_and_resumed(call, tiny, monkeypatch, sent):
    """As by Ctrl-C on a terminal, or for want of memory; of two runs one lasts for minutes."""
    monkeypatch.setitem(study.GRIDS, "depth", ((0.03, 0.01), {"depth": (1, 64)}))
    code = f"import sys; sys.path[:0] = [{str(ROOT / 'bench')!r}]; import study; "
    code += f"study.GRIDS = {study.GRIDS}; study.PRESETS = {{'small': study.{tiny['small']}}}; "
    command = [sys.executable, "-c", code + "sys.exit(study.main(sys.argv[1:]))", "--out", "here"]
    options = ["--only", "depth", "--epochs", "300"]
    with subprocess.Popen([*command, *options, "--jobs", "2", "--device", "cpu"], text=True,
                          stderr=subprocess.PIPE, start_new_session=True) as running:  # fmt: skip
        assert "depth 1/8" in running.stderr.readline()
        if sent == "SIGINT":
            os.killpg(running.pid, signal.SIGINT)
        else:
            children = study.Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
            names = {
                pid: study.Path(f"/proc/{pid}/cmdline").read_text() for pid in children.split()
            }
            job = next(pid for pid, name in names.items() if "LokyProcess" in name)
            os.kill(int(job), signal.SIGKILL)
        said = running.stderr.read()
    assert running.returncode == (130 if sent == "SIGINT" else 2)
    assert ("The same command goes on" if sent == "SIGINT" else "give fewer --jobs") in said
    had = lines()
    assert 1 <= len(had) <= 4
    monkeypatch.setattr(study, "train_one", lambda config, _: made_line(config, {"test_loss": 1.0}))
    assert call(*options)[0] == 0
    assert len(lines()) == 8
    assert all(line in lines() for line in had)


def test_no_run_starts_when_the_time_is_up(call, trained, monkeypatch):
    monkeypatch.setattr(study.time, "time", lambda: 60.0 * len(trained))  # a minute a run
    status, _, err = call("--only", "figure1,depth", "--minutes", "2.5")
    assert (status, len(trained)) == (1, 3)
    assert err.endswith("figure1: lacks 3 runs (tuning); not summarised\n"
                        "depth: lacks 8 runs (depth); not summarised\n")  # fmt: skip
    assert not study.Path("here/summary.md").exists()
    assert call("--only", "figure1,depth")[0] == 0
    assert len(trained) == len(lines())


@pytest.mark.parametrize(
    "damage",
    ["nothing", "{}", '{"final": {}, "config": {}}', '{"final": [], "config": {}}', "[]", "NaN"],
)
def test_a_damaged_line_is_named_with_its_remedy(call, damage):
    RUNS.parent.mkdir()
    RUNS.write_text(json.dumps(made_line(tiny_config(), {})) + "\n" + damage + "\n")
    status, _, err = call("--plots-only")
    assert status == 2
    assert "here/runs.jsonl, line 2: holds no finished run (" in err
    assert "); delete the line to train that run again\n" in err


def test_runs_of_two_machines_are_not_mixed(call, trained):
    assert call("--only", "depth", "--limit", "32")[0] == 0
    noted, count = study.Path("here/environment.json"), len(trained)
    here = json.loads(noted.read_text())
    for text, message in (
        (json.dumps(here | {"cpu": "Abacus"}), "its runs were made with cpu Abacus, here it is "),
        ("{", "here/environment.json: is damaged ("),
    ):
        noted.write_text(text)
        status, _, err = call("--only", "depth")
        assert (status, len(trained)) == (2, count)
        assert message in err
        assert err.endswith(("; name another --out\n", "; delete it\n"))


@pytest.mark.parametrize(("options", "message"), [
    ("--only figure9", "--only figure9: 'figure9' is no part; parts: ['figure1', 'heatmap'"),
    ("--only=", "--only : '' is no part; parts: ['figure1',"),
    ("--jobs 0", "--jobs 0 --minutes inf: give numbers above 0"),
    ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
    ("--minutes 0", "--jobs 1 --minutes 0: give numbers above 0"),
    ("--minutes nan", "--jobs 1 --minutes nan: give numbers above 0"),
    ("--limit 1", "--limit 1: must be a whole number, at least 2"),
    ("--epochs 0", "--epochs 0: must be a whole number, at least 1 and at most"),
    ("--data cifar10", "cifar10: no folder is named; get the python or the binary ver"),
    ("--data fashion-mnist --data-dir nowhere", "Fashion-MNIST: not found in nowhere, nowhere/"),
    ("--plots-only", "--out here: holds no runs to draw; name the folder that does, or"),
    ("--device cuda", "--device cuda: no CUDA device is available here; use cpu or auto"),
    ("--out /dev/null/here", "[Errno 20] Not a directory: '/dev/null/here'; finished runs are sa"),
])  # fmt: skip
def test_bad_options_are_named_before_anything_is_made(
    call, trained, monkeypatch, options, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = call(*options.split(" "))
    assert status == 2
    assert f"error: {message}" in err
    assert trained == []
    assert not study.Path("here").exists()
