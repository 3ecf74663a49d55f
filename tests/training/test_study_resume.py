"""Side-by-side training that stopped: exact resuming, and what is refused."""

import json

import pytest
from study_cases import Spy, assert_same_state, checkpoint, metrics, small, without_seconds

from lhkernels.training import TrainingError, train
from lhkernels.training.loop import Run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


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
    finished = len(metrics(parts))
    assert (parts / "curves.png").exists() == (finished > 0)

    report = train(config, parts, resume=True)
    assert {run["status"] for run in report["runs"]} == {"ok"}
    assert without_seconds(metrics(parts)) == without_seconds(metrics(whole))
    for seed in config.seeds:
        for name in config.optimizers:
            assert_same_state(checkpoint(parts, name, seed), checkpoint(whole, name, seed))


def test_resuming_with_more_epochs_is_the_longer_run(tmp_path):
    train(small(epochs=4), tmp_path / "long")
    train(small(epochs=2), tmp_path / "grown")
    train(small(epochs=4), tmp_path / "grown", resume=True)
    long, grown = metrics(tmp_path / "long"), metrics(tmp_path / "grown")
    assert without_seconds(long) == without_seconds(grown)
    for name in ("sgd", "sa-sgd"):
        assert_same_state(checkpoint(tmp_path / "long", name), checkpoint(tmp_path / "grown", name))


def test_resuming_a_finished_run_trains_nothing(tmp_path, monkeypatch):
    report = train(small(), tmp_path)
    monkeypatch.setattr(Run, "run_epoch", lambda *_: pytest.fail("trained"))
    assert train(small(), tmp_path, resume=True)["runs"] == report["runs"]


def test_resuming_rebuilds_a_torn_metrics_file(tmp_path):
    train(small(), tmp_path)
    content = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(content[:-30])
    train(small(), tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"batch_size": 16}, "--batch-size 16: the run to resume has 32"),
        ({"epochs": 1}, "--epochs 1: the run to resume has 2; epochs may only grow"),
        ({"lr": 0.5}, "--lr sgd=0.5,sa-sgd=0.5: the run to resume has sgd="),
        ({"optimizers": ("sgd",)}, "--optimizers sgd: the run to resume has sgd,sa-sgd"),
        ({"seeds": (0, 1)}, "--seeds 0,1: the run to resume has 0"),
        ({"scale_reference": "initial"}, "--scale-reference initial"),
    ],
)
def test_resuming_with_other_options_names_the_option(tmp_path, changed, option):
    out = tmp_path / "run"
    train(small(), out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(TrainingError) as caught:
        train(small(**changed), out, resume=True)
    assert str(caught.value).startswith(option)
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


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


def test_resuming_nothing_and_resuming_damage(tmp_path):
    with pytest.raises(TrainingError, match="there is no run in"):
        train(small(), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    train(small(), tmp_path)
    file = tmp_path / "checkpoints" / "sgd-seed0.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"sgd-seed0.pt: can not be read; delete it"):
        train(small(epochs=3), tmp_path, resume=True)
    file.unlink()
    report = train(small(epochs=3), tmp_path, resume=True)
    assert [run["epochs"] for run in report["runs"]] == [3, 3]
