"""docs/training-study.md says what the committed runs say."""

import re

import pytest
from sweep_cases import COMMITTED, ROOT, committed_study

from lhkernels.training.experiments import PARTS, PRESETS
from lhkernels.training.models import LAYOUTS
from lhkernels.training.sweep import ResultFile
from lhkernels.training.sweep_summary import choose_lr, summarise

PAGE = re.sub(r"\s+", " ", (ROOT / "docs" / "training-study.md").read_text(encoding="utf-8"))
NAMES = {"sgd": "SGD", "sa-sgd": "scale-amended SGD"}


@pytest.fixture(scope="module")
def summary():
    """Made anew from the runs."""
    study, file = committed_study(), ResultFile(COMMITTED / "runs.jsonl")
    parts = {part: study.map_of(part) for part in PARTS if part != "figure1"}
    parts["figure1"] = study.figure1(choose_lr(study.tuning(), file))
    return summarise(study, parts, file)


def row_of(summary, part, name, **where):
    (row,) = (
        row
        for row in summary[part]["rows"]
        if row["optimizer"] == name and where.items() <= row.items()
    )
    return row


def assert_says(*phrases):
    for phrase in phrases:
        assert phrase in PAGE, phrase


def test_the_table_of_figure_1(summary):
    rows = summary["figure1"]["rows"]
    for row in rows:
        setting = {"paper": "the paper's", "tuned": "tuned"}[row["setting"]]
        loss = f"{row['train_loss']:.4f} ± {row['train_loss_std']:.4f}"
        error = f"{100 * row['test_error']:.2f} % ± {100 * row['test_error_std']:.2f}"
        name = NAMES[row["optimizer"]]
        assert_says(f"| {setting} | {name} | {row['lr']:g} | {loss} | {error} |")
    assert PAGE.count("± 0.") >= len(rows) == 4
    assert {row["seeds"] for row in rows} == {5}
    assert_says("mean and range over 5 seeds", "standard deviation, n = 5")


def test_the_differences_of_figure_1(summary):
    paper, tuned = summary["figure1"]["paired"]
    assert paper["train_loss_lower"] == tuned["train_loss_lower"] == 5
    assert_says("lower in 5 of 5 seeds with either choice of learning rate")
    lower = paper["test_error_lower"], tuned["test_error_lower"]
    assert_says(f"The test error is lower in {lower[0]} and in {lower[1]} of 5 seeds")
    for pair in (paper, tuned):
        assert f"{-100 * pair['test_error']:.1f}" == "1.1"
    assert_says("by 1.1 points on average")
    least, most = sorted(100 * pair["test_error_std"] for pair in (paper, tuned))
    # 1.654 is rounded up: a spread is not to look smaller than it is.
    assert 0.9 <= least < 0.95
    assert 1.6 < most <= 1.7
    assert_says("with a spread of 0.9 to 1.7 points")


def test_initial_scale_without_weight_decay(summary):
    def loss(name, lr, scale):
        row = row_of(summary, "heatmap-no-decay", name, lr=lr, init_scale=scale)
        return None if row["diverged"] else row["train_loss"]

    along = [f"{loss('sa-sgd', 0.003, scale):.4f}" for scale in (1, 10, 100)]
    assert_says(f"{along[0]}, {along[1]} and {along[2]} at 1, 10 and 100 for lr 0.003")
    chaotic = [loss("sa-sgd", 0.03, scale) for scale in (0.01, 0.1, 1, 10, 100)]
    assert_says(f"({min(chaotic):.2f} to {max(chaotic):.2f})")
    (rate,) = {
        row["lr"]
        for row in summary["heatmap-no-decay"]["best"]
        if (row["optimizer"], row["init_scale"]) == ("sgd", 1)
    }
    first, last = loss("sgd", rate, 1), loss("sgd", rate, 100)
    assert_says(f"at its best rate for scale 1 goes from {first:.2f} to {last:.2f} at scale 100")
    sgd, amended = summary["heatmap-no-decay"]["good_region"]
    assert_says(f"{amended['good']} of {amended['cells']} cells against SGD's {sgd['good']}")
    assert amended["scales_good_at_one_lr"] == amended["scales"]
    assert_says("one learning rate serves all scales")
    diverged = {
        (row["lr"], row["init_scale"])
        for row in summary["heatmap-no-decay"]["rows"]
        if row["diverged"]
    }
    assert diverged == {(lr, scale) for lr in (0.1, 0.3) for scale in (0.01, 0.1, 1, 10, 100)}
    assert (sgd["diverged"], amended["diverged"]) == (0, 10)
    assert_says("rates of 0.1 and more diverge at every scale, where SGD still trains")


def test_initial_scale_with_weight_decay(summary):
    at_100 = [row for row in summary["heatmap"]["rows"] if row["init_scale"] == 100]
    diverged = {row["lr"] for row in at_100 if row["diverged"]}
    assert diverged == {0.003, 0.01, 0.03, 0.1, 0.3}
    assert {row["optimizer"] for row in at_100 if row["diverged"]} == {"sa-sgd"}
    assert_says("from lr 0.003 on (0.01 was predicted) every run of scale-amended SGD diverges")
    best = {r["optimizer"]: r for r in summary["heatmap"]["best"] if r["init_scale"] == 100}
    assert best["sa-sgd"]["train_loss"] > best["sgd"]["train_loss"]


def test_width_and_depth(summary):
    best = {(r["optimizer"], r["width"]): r for r in summary["width"]["best"]}
    for width, ahead in ((0.25, False), (0.5, None), (1, True), (2, True)):
        gain = best["sgd", width]["train_loss"] - best["sa-sgd", width]["train_loss"]
        assert (gain > 0.01) == bool(ahead)
    for name in NAMES:
        assert (best[name, 0.25]["lr"], best[name, 2]["lr"]) == (0.03, 0.01)
    assert_says("ahead from width 1 on", "falls from 0.03 to 0.01", "but so does SGD's")
    gains = {}
    for row in summary["depth"]["best"]:
        gains.setdefault(row["depth"], []).append(row["train_loss"])
    first, second, third = (sgd - amended for sgd, amended in gains.values())
    assert first < second > third  # neither growing nor shrinking
    assert_says("No trend")
    for part in ("heatmap", "heatmap-no-decay", "width", "depth"):
        assert {row["seeds"] for row in summary[part]["rows"]} == {1}
    assert_says("Heat maps, width and depth have one seed a cell")


def test_the_set_up():
    options = PRESETS["small"].options
    convolutions = sum(isinstance(entry, int) for entry in LAYOUTS[options["model"]])
    side = 28 // options["shrink"]
    assert_says(f"{convolutions} convolutions, {options['limit']} images at {side}x{side}")
    assert_says(f"error on {options['validation']} held-out training images")
    (config,) = {cell[0].weight_decay for cell in committed_study().heatmap().values()}
    assert_says(f"momentum 0.9, weight decay {config:g}")
    assert_says("python bench/study.py --preset small --data fashion-mnist --out bench/results/")
