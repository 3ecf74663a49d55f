"""Side-by-side training: same start, same batches, exact resuming, divergence, interruption."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

import lhkernels as lh
from lhkernels.training import Observer, TrainConfig, TrainingError, train
from lhkernels.training import study as study_module
from lhkernels.training.data import batches, load
from lhkernels.training.loop import Run, build_model
from lhkernels.training.models import normalised_weights

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

FIELDS = ["seed", "epoch", "optimizer", "train_loss", "test_loss", "test_error", "lr", "seconds"]
CPU = torch.device("cpu")


def small(**options):
    """A run of a few milliseconds an epoch."""
    return TrainConfig(**{"limit": 160, "batch_size": 32, "width": 0.25, "epochs": 2, **options})


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_seconds(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def checkpoint(out, optimizer, seed=0):
    return torch.load(out / "checkpoints" / f"{optimizer}-seed{seed}.pt", weights_only=True)


def assert_same_state(a, b, path=""):
    """Equal bit for bit, through nested containers; times aside."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        for key in (a.keys() | b.keys()) - {"seconds"}:
            # An option that is left out and one that is None mean the same to an optimizer.
            assert_same_state(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


class Spy(Observer):
    """Keeps the initial weights of every run and raises KeyboardInterrupt where it is told to."""

    def __init__(self, interrupt_at=None):
        self.initial, self.interrupt_at = {}, interrupt_at

    def start_seed(self, runs):
        for run in runs:
            weights = [p.detach().clone() for p in run.model.parameters()]
            self.initial[run.seed, run.name] = weights

    def batch(self, run, step, loss):
        if (run.seed, run.name, len(run.history) + 1) == self.interrupt_at and step == 2:
            raise KeyboardInterrupt


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
        run = Run(small(scale_reference=reference), "sa-sgd", 0, data, CPU)
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
            real = study_module.find_spec
            patch.setattr(
                study_module, "find_spec", lambda n, p=package, r=real: None if n == p else r(n)
            )
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
