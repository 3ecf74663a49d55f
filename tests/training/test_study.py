"""Side-by-side training: same start, same batches, same numbers; divergence; what is reported."""

import json
import math

import pytest
import torch
from study_cases import Spy, assert_same_state, checkpoint, metrics, small
from torch.nn import functional as F

import lhkernels as lh
from lhkernels.training import TrainConfig, TrainingError, loop, train
from lhkernels.training.config import RunKey
from lhkernels.training.data import batches, load
from lhkernels.training.loop import Run, build_model
from lhkernels.training.models import normalised_weights

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

FIELDS = [
    "init_scale",
    "seed",
    "optimizer",
    "epoch",
    "train_loss",
    "test_loss",
    "test_error",
    "lr",
    "seconds",
]
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
    records = metrics(tmp_path)
    assert [list(record) for record in records] == [FIELDS] * 8
    assert [(r["seed"], r["epoch"], r["optimizer"]) for r in records] == [
        (seed, epoch, name) for seed in (4, 2) for epoch in (1, 2) for name in ("sgd", "sa-sgd")
    ]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert TrainConfig(**report["config"]) == config
    assert {"python", "torch", "platform", "cpu", "gpu", "threads"} <= set(report["environment"])
    for run in report["runs"]:
        mine = [
            r for r in records if (r["seed"], r["optimizer"]) == (run["seed"], run["optimizer"])
        ]
        assert run["status"] == "ok"
        assert run["final_train_loss"] == mine[-1]["train_loss"]
        assert run["best_test_error"] == min(r["test_error"] for r in mine)
    for row in report["summary"]:
        finals = [
            r["final_test_error"] for r in report["runs"] if r["optimizer"] == row["optimizer"]
        ]
        mean = sum(finals) / 2
        assert row["final_test_error"]["mean"] == pytest.approx(mean)
        assert row["final_test_error"]["std"] == pytest.approx(
            math.sqrt(sum((x - mean) ** 2 for x in finals))
        )


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


def test_scale_reference_reaches_the_optimizer():
    data = load(small())
    scales = {}
    for reference in ("output", "initial"):
        run = Run(small(scale_reference=reference), RunKey(1.0, 0, "sa-sgd"), data, CPU)
        run.run_epoch()
        assert run.optimizer.param_groups[0]["scale_reference"] == reference
        scales[reference] = run.optimizer.block_scales()
    assert len(scales["output"]) == len(list(normalised_weights(run.model))) + 1
    assert "classifier.weight" in scales["output"]


def test_missing_packages_are_named_before_anything_is_written(tmp_path, monkeypatch):
    out = tmp_path / "run"
    for package, config, remedy in (
        ("matplotlib", small(), "pip install lhkernels.demo."),
        ("sklearn", small(), "pip install lhkernels.demo."),
        ("pytorch_optimizer", small(optimizers=("sgd", "lars")), "pip install pytorch_optimizer"),
    ):
        with monkeypatch.context() as patch:
            real = loop.find_spec
            patch.setattr(loop, "find_spec", lambda n, p=package, r=real: None if n == p else r(n))
            with pytest.raises(TrainingError, match=remedy):
                train(config, out)
    assert not out.exists()


def test_lars_trains(tmp_path):
    pytest.importorskip("pytorch_optimizer")
    report = train(small(optimizers=("lars",)), tmp_path)
    assert report["runs"][0]["status"] == "ok"


def test_no_cuda_is_an_error_of_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="--device cuda: no CUDA device"):
        train(small(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
