"""Runs of a sweep: what each of a pair starts from and is told, what is written, what diverges."""

import json

import pytest
import torch
from sweep_cases import TINY, tiny_config, tiny_study

from lhkernels.training import TrainingError, loop, sweep
from lhkernels.training import data as data_module
from lhkernels.training.config import DEFAULTS
from lhkernels.training.experiments import COMPARED, PARTS, PRESETS, Experiments
from lhkernels.training.loop import Run
from lhkernels.training.sources import RawData
from lhkernels.training.sweep import FINAL, HISTORY, ResultFile, run_all, run_key, train_one
from lhkernels.training.sweep_summary import choose_lr

pytest.importorskip("sklearn")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_data_kept():
    sweep._loaded.clear()
    yield
    sweep._loaded.clear()


def pairs(cells):
    """(SGD's config, SA-SGD's) for every label and seed."""
    for label, cell in cells.items():
        if COMPARED[0] in label:
            other = cells[tuple(COMPARED[1] if part == COMPARED[0] else part for part in label)]
            yield from zip(cell, other, strict=True)


def decisive(config):
    """Everything but which optimizer it is."""
    options = config.to_dict()
    (lr,) = options.pop("lr").values()
    return options | {"optimizers": None, "lr": lr}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("part", [*PARTS, "tuning"])
def test_both_optimizers_get_the_same_grid_and_the_same_budget(preset, part):
    study = Experiments(PRESETS[preset], {"data": "fashion-mnist"})
    same_lr = dict.fromkeys(COMPARED, 0.07)
    if part == "figure1":
        cells = study.figure1(same_lr)
    else:
        cells = study.tuning() if part == "tuning" else study.map_of(part)
    found = list(pairs(cells))
    assert 2 * len(found) == sum(map(len, cells.values()))
    for sgd, amended in found:
        assert (sgd.optimizers, amended.optimizers) == (("sgd",), ("sa-sgd",))
        a, b = decisive(sgd), decisive(amended)
        if part == "figure1" and a["lr"] != 0.07:  # the paper's pair of learning rates
            paper = DEFAULTS["cifar10"].lr
            assert (a.pop("lr"), b.pop("lr")) == (paper["sgd"], paper["sa-sgd"])
        assert a == b


def test_curves_are_drawn_from_other_seeds_than_the_learning_rates_are_chosen_on():
    for preset in PRESETS.values():
        assert not set(preset.tuning_seeds) & set(preset.seeds)


def test_a_pair_starts_from_the_same_weights_and_sees_the_same_batches(monkeypatch):
    seen = []
    make, draw = Run.__init__, loop.batches

    def make_and_keep(run, *arguments):
        make(run, *arguments)
        seen.append([parameter.detach().clone() for parameter in run.model.parameters()])

    def draw_and_keep(*arguments):
        for images, labels in draw(*arguments):
            seen[-1] += [images.clone(), labels.clone()]
            yield images, labels

    monkeypatch.setattr(Run, "__init__", make_and_keep)
    monkeypatch.setattr(loop, "batches", draw_and_keep)
    study = tiny_study()
    starts = []
    for part in ("heatmap", "width", "depth"):
        for pair in [p for p in pairs(study.map_of(part)) if p[0].lr["sgd"] == 0.01]:
            seen.clear()
            for config in pair:
                train_one(config, CPU)
            first, second = seen
            weights = len(first) - 2 * 2  # two batches of images and labels
            assert weights in (6, 11)  # linear layer, 5 convolutions, or 10 of them
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            starts.append(tuple(weight.shape for weight in first[:weights]))
    assert len(set(starts)) > 2  # widths and depths do reach the model


def numbered_images(count, first):
    """Images whose first two pixels are their number, so that each can be told from all others."""
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
    number = torch.arange(first, first + count)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (number // 256).byte(), (number % 256).byte()
    return images


@pytest.mark.parametrize("limit", [64, 300])
def test_held_out_and_test_images_are_never_trained_on(monkeypatch, limit):
    labels = torch.arange(300) % 10
    raw = RawData(numbered_images(200, 0), labels[:200], numbered_images(90, 200), labels[:90], 10)
    monkeypatch.setattr(data_module, "load_raw", lambda *_: raw)
    parts = {}
    plain = loop.batches

    def spy(data, *arguments):
        parts.update({name: data.part(name)[0] for name in ("train", "validation", "test")})
        return plain(data, *arguments)

    monkeypatch.setattr(loop, "batches", spy)
    train_one(tiny_config(limit=limit, flip=0, rotate=0), CPU)
    numbers = {
        name: set((images[:, 0, 0, 0].int() * 256 + images[:, 0, 0, 1]).tolist())
        for name, images in parts.items()
    }
    assert numbers["train"] == set(range(min(limit, 150)))
    assert numbers["validation"] == set(range(150, 200))
    assert numbers["test"] == set(range(200, 290))


def test_the_test_data_decide_nothing_but_the_last_figures(tmp_path, monkeypatch):
    def tuned(name):
        file = ResultFile(tmp_path / name)
        tuning = tiny_study().tuning()
        run_all([config for cell in tuning.values() for config in cell], file, CPU)
        return choose_lr(tuning, file), file.results

    looks = []
    evaluate = Run.evaluate
    monkeypatch.setattr(Run, "evaluate", lambda run: looks.append(run) or evaluate(run))
    chosen, results = tuned("true.jsonl")
    ended = [result for result in results.values() if result["status"] == "ok"]
    assert len(looks) == len(ended) == 4  # once each, though the runs have two epochs
    assert all(len(run.history) == TINY.epochs for run in looks)
    sweep._loaded.clear()
    raw = data_module.load_raw("digits", None)
    shifted = vars(raw) | {"test_labels": (raw.test_labels + 1) % 10}
    monkeypatch.setattr(data_module, "load_raw", lambda *_: RawData(**shifted))
    again, others = tuned("shifted.jsonl")
    assert again == chosen
    for key, result in results.items():
        assert others[key]["history"] == result["history"]
        if result["status"] == "ok":
            assert others[key]["final"]["test_error"] != result["final"]["test_error"]


def test_a_line_has_the_run_as_it_was(tmp_path):
    config = tiny_config("sa-sgd", 0.03, epochs=3)
    run = Run(config, config.run_keys()[0], data_module.load(config), CPU)
    records = [run.run_epoch(test=epoch == 3) for epoch in (1, 2, 3)]
    file = ResultFile(tmp_path / "runs.jsonl")
    told = []
    assert run_all([config], file, CPU, report=lambda *finished: told.append(finished)) == 0
    assert told == [(config, file[config])]
    result = json.loads(file.path.read_text())
    assert (result["key"], result["status"], result["epochs"]) == (run_key(config), "ok", 3)
    for name in HISTORY:
        assert result["history"][name] == pytest.approx([r[name] for r in records], rel=1e-5)
    for name in FINAL:
        assert result["final"][name] == pytest.approx(records[-1][name], rel=1e-5)
    assert ResultFile(file.path).results == file.results == {result["key"]: result}


def test_a_diverged_run_is_a_line_like_any_other(tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    bad, good = tiny_config(lr=1e30), tiny_config()
    assert run_all([bad, good], ResultFile(path), CPU) == 0
    file = ResultFile(path)
    result = file[bad]
    assert (result["status"], file[good]["status"]) == ("diverged", "ok")
    assert 1 <= result["epochs"] <= 2
    assert set(result["final"].values()) == {None}
    assert [len(column) for column in result["history"].values()] == [result["epochs"]] * 4
    assert result["history"]["train_loss"][-1] is None
    monkeypatch.setattr(sweep, "train_one", lambda *_: pytest.fail("trained again"))
    assert run_all([bad, good], file, CPU) == 0


def test_a_run_is_known_by_what_decides_it():
    config = tiny_config()
    assert run_key(tiny_config(data_dir="/elsewhere", device="cpu")) == run_key(config)
    changed = {"epochs": 3, "limit": 63, "validation": 51, "weight_decay": 0.0, "init_scale": 2.0}
    others = [tiny_config(**{name: value}) for name, value in changed.items()]
    others += [tiny_config("sa-sgd"), tiny_config(lr=0.011), tiny_config(seed=1)]
    keys = {run_key(other) for other in others} | {run_key(config)}
    assert len(keys) == 1 + len(others)


def test_one_data_set_is_kept_and_the_right_one():
    a = sweep.load_once(tiny_config(), CPU)
    assert sweep.load_once(tiny_config("sa-sgd", seed=3, width=0.5), CPU) is a
    for changed in ({"limit": 32}, {"validation": 20}, {"model": "vgg11"}, {"shrink": 2}):
        other = sweep.load_once(tiny_config(**changed), CPU)
        direct = data_module.load(tiny_config(**changed))
        assert torch.equal(other.train_images, direct.train_images)
        assert torch.equal(other.validation_images, direct.validation_images)
        assert len(sweep._loaded) == 1


def test_missing_runs_are_named_once(tmp_path):
    file = ResultFile(tmp_path / "runs.jsonl")
    a, b = tiny_config(), tiny_config(seed=1)
    assert file.missing([a, b, a]) == [a, b]
    run_all([a], file, CPU)
    assert file.missing([a, b, a]) == [b]


@pytest.mark.parametrize(
    "damage",
    ["nothing", "{}", '{"final": {}, "config": {}}', '{"final": [], "config": {}}', "[]", "NaN"],
)
def test_a_damaged_line_is_named_with_its_remedy(tmp_path, damage):
    path = tmp_path / "runs.jsonl"
    run_all([tiny_config(epochs=1)], ResultFile(path), CPU)
    path.write_text(path.read_text() + damage + "\n")
    with pytest.raises(TrainingError, match=r"runs.jsonl, line 2: .*; delete the line to train"):
        ResultFile(path)


def test_a_file_that_can_not_be_read_or_written_is_named(tmp_path):
    (tmp_path / "runs.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"runs.jsonl: can not be read"):
        ResultFile(tmp_path / "runs.jsonl")
    file = ResultFile(tmp_path / "none" / "runs.jsonl")
    with pytest.raises(TrainingError, match=r"runs.jsonl: can not be written \(No such file"):
        run_all([tiny_config(epochs=1)], file, CPU)
    assert not file.results
