"""Side-by-side training: same start, same batches, same numbers; divergence; what is reported."""

import json
import math
import statistics

import pytest
import torch
from torch.nn import functional as F
from train_cases import Spy, assert_same_state, checkpoint, metrics, small

import lhkernels as lh
from lhkernels.training import TrainConfig, TrainingError, loop, train
from lhkernels.training.config import RunKey
from lhkernels.training.data import batches, load
from lhkernels.training.loop import Run, build_model
from lhkernels.training.models import normalised_weights
from lhkernels.training.plots import label, spread

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

FIELDS = [
    "init_scale", "seed", "optimizer", "epoch", "train_loss", "test_loss", "test_error", "lr",
    "seconds",
]  # fmt: skip
CPU = torch.device("cpu")


def test_metrics_are_those_of_a_plain_training_loop(tmp_path):
    config = small(optimizers=("sgd", "sa-sgd"), lr={"sgd": 0.05, "sa-sgd": 0.01})
    train(config, tmp_path)
    data = load(config)
    for name, make in (("sgd", torch.optim.SGD), ("sa-sgd", lh.ScaleAmendedSGD)):
        model = build_model(config, data, seed=0)
        options = {"lr": config.lr[name], "momentum": 0.9, "weight_decay": 0.005}
        optimizer = make(model.parameters(), **options)
        for record in (r for r in metrics(tmp_path) if r["optimizer"] == name):
            losses = []
            model.train()
            for images, labels in batches(data, config, 0, record["epoch"]):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            assert record["train_loss"] == pytest.approx(math.fsum(losses) / 5, rel=1e-12)
            model.eval()
            with torch.no_grad():
                logits = model(data.normalise(data.test_images.float()))
            wrong = (logits.argmax(1) != data.test_labels).sum().item()
            assert record["test_error"] == wrong / 450
            test_loss = F.cross_entropy(logits, data.test_labels).item()
            assert record["test_loss"] == pytest.approx(test_loss, rel=1e-6)


def test_every_optimizer_has_the_same_start_and_the_same_batches(tmp_path, monkeypatch):
    seen = {}
    plain = Run._train

    def train_and_keep(run, epoch, on_batch):
        key = (run.seed, epoch)
        pixels = [images.clone() for images, _ in batches(run.data, run.config, run.seed, epoch)]
        seen.setdefault(key, []).append(pixels)
        return plain(run, epoch, on_batch)

    monkeypatch.setattr(Run, "_train", train_and_keep)
    spy = Spy()
    train(small(seeds=(0, 1), flip=0.5), tmp_path, observer=spy)
    for seed in (0, 1):
        assert_same_state(spy.initial[seed, "sgd"], spy.initial[seed, "sa-sgd"])
    assert not torch.equal(spy.initial[0, "sgd"][0], spy.initial[1, "sgd"][0])
    assert sorted(seen) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for first, second in seen.values():
        assert_same_state(first, second)


def test_one_optimizer_does_not_change_the_other(tmp_path):
    train(small(), tmp_path / "both")
    train(small(optimizers=("sa-sgd",)), tmp_path / "alone")
    assert_same_state(
        checkpoint(tmp_path / "both", "sa-sgd"), checkpoint(tmp_path / "alone", "sa-sgd")
    )


def test_files_and_fields(tmp_path):
    config = small(seeds=(4, 2), init_scale=2.0)
    report = train(config, tmp_path)
    records = metrics(tmp_path, seconds=True)
    assert [list(record) for record in records] == [FIELDS] * 8
    assert [(r["seed"], r["epoch"], r["optimizer"]) for r in records] == [
        (seed, epoch, name) for seed in (4, 2) for epoch in (1, 2) for name in ("sgd", "sa-sgd")
    ]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert TrainConfig(**report["config"]) == config
    assert {"python", "torch", "platform", "cpu", "gpu", "threads"} <= set(report["environment"])
    for run in report["runs"]:
        mine = [r for r in records if all(r[k] == run[k] for k in ("seed", "optimizer"))]
        assert run["status"] == "ok"
        assert run["final_train_loss"] == mine[-1]["train_loss"]
        assert run["best_test_error"] == min(r["test_error"] for r in mine)
    for row in report["summary"]:
        mine = [run for run in report["runs"] if run["optimizer"] == row["optimizer"]]
        finals = [run["final_test_error"] for run in mine]
        assert row["final_test_error"]["mean"] == pytest.approx(statistics.mean(finals))
        assert row["final_test_error"]["std"] == pytest.approx(statistics.stdev(finals))


def test_a_diverged_run_is_reported_and_the_other_goes_on(tmp_path):
    config = small(lr={"sgd": 1e6, "sa-sgd": 0.01}, epochs=3)
    report = train(config, tmp_path)
    sgd, amended = report["runs"]
    assert (sgd["status"], amended["status"]) == ("diverged", "ok")
    last = sgd["diverged_in_epoch"]
    assert sgd["epochs"] == last - 1
    assert sgd["final_train_loss"] is None
    assert amended["epochs"] == 3
    diverged = [r for r in metrics(tmp_path) if r["optimizer"] == "sgd"]
    assert len(diverged) == last
    nothing = {"train_loss": None, "test_loss": None, "test_error": None}
    assert {key: diverged[-1][key] for key in nothing} == nothing
    assert report["summary"][0]["diverged"] == 1
    # Resuming does not try it again.
    again = train(small(lr=config.lr, epochs=4), tmp_path, resume=True)
    assert [run["status"] for run in again["runs"]] == ["diverged", "ok"]
    assert again["runs"][1]["epochs"] == 4


def test_learning_rate_halves_when_the_test_error_stays(tmp_path, monkeypatch):
    errors = iter([0.5, 0.4, 0.4, 0.4, 0.4, 0.3, 0.35, 0.35, 0.35])
    monkeypatch.setattr(Run, "evaluate", lambda run: (1.0, next(errors)))
    train(small(optimizers=("sgd",), lr=0.08, patience=2, epochs=9), tmp_path)
    # The third epoch in a row without a lower error ends the patience of two.
    expected = [0.08] * 5 + [0.04] * 4
    assert [r["lr"] for r in metrics(tmp_path)] == expected
    assert checkpoint(tmp_path, "sgd")["optimizer"]["param_groups"][0]["lr"] == 0.02


def test_bfloat16_autocast_on_the_cpu(tmp_path):
    with_amp = train(small(amp=True), tmp_path / "amp")["runs"]
    without = train(small(), tmp_path / "float32")["runs"]
    for a, b in zip(with_amp, without, strict=True):
        assert a["final_train_loss"] != b["final_train_loss"]
        # bfloat16 has eight significant bits.
        assert a["final_train_loss"] == pytest.approx(b["final_train_loss"], rel=0.1)
    weights = checkpoint(tmp_path / "amp", "sgd")["model"]
    assert all(w.dtype != torch.bfloat16 for w in weights.values())


@pytest.mark.parametrize("reference", ["output", "initial"])
def test_scale_reference_reaches_the_optimizer(reference):
    config = small(scale_reference=reference)
    run = Run(config, RunKey(1.0, 0, "sa-sgd"), load(config), CPU)
    run.run_epoch()
    assert run.optimizer.param_groups[0]["scale_reference"] == reference
    scales = run.optimizer.block_scales()
    assert len(scales) == len(normalised_weights(run.model)) + 1
    assert "classifier.weight" in scales


@pytest.mark.parametrize(
    ("package", "config", "remedy"),
    [
        ("matplotlib", small(), "pip install lhkernels.demo."),
        ("sklearn", small(), "pip install lhkernels.demo."),
        ("pytorch_optimizer", small(optimizers=("sgd", "lars")), "pip install pytorch_optimizer"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path, monkeypatch, package, config, remedy
):
    find = loop.find_spec
    monkeypatch.setattr(loop, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(TrainingError, match=remedy):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_an_optimizers_error_is_the_users_at_its_start_only(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error("no step today")

    run = Run(small(), RunKey(1.0, 0, "sgd"), load(small()), CPU)
    run.run_epoch()
    monkeypatch.setattr(torch.optim.SGD, "step", refuse)
    with pytest.raises(TrainingError, match=r"sgd \(seed 0\) can not train: no step today; "):
        train(small(), tmp_path)
    monkeypatch.setattr(run.optimizer, "step", refuse)
    with pytest.raises(error, match=r"^no step today$"):
        run.run_epoch()


def test_lars_trains(tmp_path):
    pytest.importorskip("pytorch_optimizer")
    report = train(small(optimizers=("lars",)), tmp_path)
    assert report["runs"][0]["status"] == "ok"


def test_no_cuda_is_an_error_of_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="--device cuda: no CUDA device"):
        train(small(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_scale_trains_as_if_it_were_alone(tmp_path):
    report = train(small(init_scale=(10.0, 1.0), seeds=(0, 1)), tmp_path / "both")
    both, alone = metrics(tmp_path / "both"), []
    for scale, suffix in ((10.0, "-scale10.0"), (1.0, "")):
        out = tmp_path / str(scale)
        single = train(small(init_scale=scale, seeds=(0, 1)), out)
        alone += metrics(out)
        for name in ("sgd", "sa-sgd"):
            a, b = (checkpoint(o, name, seed=1, scale=suffix) for o in (tmp_path / "both", out))
            assert_same_state(a, b)
        rows = [row for row in report["summary"] if row["init_scale"] == scale]
        for row, expected in zip(rows, single["summary"], strict=True):
            assert row["optimizer"] == expected["optimizer"]
            assert row["final_train_loss"] == expected["final_train_loss"]
    assert both == alone
    assert both[0]["train_loss"] != both[-4]["train_loss"]


def test_the_picture_is_of_the_last_epochs_over_the_scale():
    records = [
        {"epoch": 2, "init_scale": scale, "train_loss": loss}
        for scale, loss in ((1.0, 3.0), (0.1, 5.0), (1.0, 1.0), (10.0, None))
    ]
    places, *figures = spread(records, "train_loss", 2, "init_scale")
    assert places == [0.1, 1.0]
    assert figures == [[10.0, 4.0], [10.0, 2.0], [10.0, 6.0]]  # mean, least, largest
    config = small(init_scale=(0.1, 1.0, 10.0), seeds=(0, 1), lr=0.5)
    histories = [[record] for record in records]
    assert label(config, histories, "sgd") == "sgd, lr 0.5: diverged in epoch 2 (1 of 6 runs)"
    assert label(config, histories[:3], "sgd") == "sgd, lr 0.5"
