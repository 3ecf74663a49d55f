"""A training that stopped: exact resuming, what is refused, and damage that is named."""

import json
import shutil

import pytest
import torch
from train_cases import Spy, assert_same_state, checkpoint, metrics, small

from lhkernels.training import TrainingError, train
from lhkernels.training.loop import Run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """The folder of a run that goes on after one epoch."""
    folder = tmp_path_factory.mktemp("one epoch")
    train(small(epochs=1), folder)
    return folder


@pytest.fixture
def out(tmp_path, one_epoch):
    """A copy of it."""
    return shutil.copytree(one_epoch, tmp_path / "run")


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "interrupt_at", [(0, "sgd", 1), (0, "sa-sgd", 2), (0, "sgd", 3), (1, "sa-sgd", 1)]
)
def test_interrupted_and_resumed_is_bit_for_bit_uninterrupted(tmp_path, interrupt_at):
    config = small(seeds=(0, 1), epochs=3, patience=0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    with pytest.raises(KeyboardInterrupt):
        train(config, parts, observer=Spy(interrupt_at))
    report = json.loads((parts / "report.json").read_text())
    status = {(run["seed"], run["optimizer"]): run["status"] for run in report["runs"]}
    assert status[interrupt_at[:2]] == "interrupted"
    assert (parts / "curves.png").exists() == bool(metrics(parts))

    report = train(config, parts, resume=True)
    assert {run["status"] for run in report["runs"]} == {"ok"}
    assert metrics(parts) == metrics(whole)
    for seed in config.seeds:
        for name in config.optimizers:
            assert_same_state(checkpoint(parts, name, seed), checkpoint(whole, name, seed))


def test_resuming_with_more_epochs_is_the_longer_run(tmp_path):
    long, grown = tmp_path / "long", tmp_path / "grown"
    scales = {"init_scale": (0.1, 1.0)}
    train(small(epochs=3, **scales), long)
    train(small(epochs=1, **scales), grown)
    with pytest.raises(TrainingError, match=r"--init-scale 0.1: the run to resume has 0.1,1.0"):
        train(small(init_scale=0.1), grown, resume=True)
    train(small(epochs=3, **scales), grown, resume=True)
    assert metrics(long) == metrics(grown)
    for name in ("sgd", "sa-sgd"):
        for scale in ("", "-scale0.1"):
            a, b = (checkpoint(out, name, scale=scale) for out in (long, grown))
            assert_same_state(a, b)


def test_resuming_a_finished_run_trains_nothing_and_mends_the_metrics(out, monkeypatch):
    report = json.loads((out / "report.json").read_text())
    whole = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text(whole[:-30])
    monkeypatch.setattr(Run, "run_epoch", lambda *_: pytest.fail("trained"))
    assert train(small(epochs=1), out, resume=True)["runs"] == report["runs"]
    assert (out / "metrics.jsonl").read_text() == whole


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 16}, "--batch-size 16: the run to resume has 32"),
        ({"epochs": 1}, "--epochs 1: the run to resume has 2; epochs may only grow"),
        ({"lr": 0.5}, "--lr sgd=0.5,sa-sgd=0.5: the run to resume has sgd="),
        ({"optimizers": ("sgd",)}, "--optimizers sgd: the run to resume has sgd,sa-sgd"),
        ({"seeds": (0, 1)}, "--seeds 0,1: the run to resume has 0"),
        ({"scale_reference": "initial"}, "--scale-reference initial"),
    ],
)
def test_resuming_with_other_options_names_the_option(out, changed, message):
    train(small(), out, resume=True)
    before = contents(out)
    with pytest.raises(TrainingError) as caught:
        train(small(**changed), out, resume=True)
    assert str(caught.value).startswith(message)
    assert before == contents(out)


def test_a_folder_with_a_run_is_refused_or_replaced(tmp_path):
    train(small(seeds=(0, 1), epochs=1), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"--resume.*--overwrite"):
        train(small(), tmp_path)
    with pytest.raises(TrainingError, match="exclude each other"):
        train(small(), tmp_path, resume=True, overwrite=True)
    train(small(epochs=1), tmp_path, overwrite=True)
    assert {r["seed"] for r in metrics(tmp_path)} == {0}
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert names == ["sa-sgd-seed0.pt", "sgd-seed0.pt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resuming_nothing(tmp_path):
    with pytest.raises(TrainingError, match="there is no run in"):
        train(small(), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state, other: None, "can not be read"),
        (lambda state, other: torch.zeros(3), "does not hold this run's state"),
        (lambda state, other: {"weights": torch.zeros(3)}, "does not hold this run's state"),
        (lambda state, other: state | {"history": [{}]}, "does not hold this run's state"),
        (lambda state, other: other, "does not hold this run's state"),
        (lambda state, other: state | {"model": {}}, "does not fit the run's network"),
        (lambda state, other: state | {"optimizer": {}}, "does not fit the run's network"),
        (lambda state, other: state | {"scheduler": 1}, "does not fit the run's network"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_can_be_deleted(out, damage, message):
    file = out / "checkpoints" / "sgd-seed0.pt"
    damaged = damage(checkpoint(out, "sgd"), checkpoint(out, "sa-sgd"))
    if damaged is None:
        file.write_bytes(file.read_bytes()[:100])
    else:
        torch.save(damaged, file)
    with pytest.raises(TrainingError) as caught:
        train(small(), out, resume=True)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "delete it to train this run again" in str(caught.value)
    file.unlink()
    report = train(small(), out, resume=True)
    assert [run["epochs"] for run in report["runs"]] == [2, 2]
