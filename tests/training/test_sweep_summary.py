"""What a sweep's summary says, on results made by hand; what the pictures show."""

import json
import math
from statistics import fmean, stdev

import pytest
from sweep_cases import committed_study, made_file, tiny_study

from lhkernels.training.experiments import COMPARED, PARTS, Experiments, Preset
from lhkernels.training.sweep import ResultFile
from lhkernels.training.sweep_summary import (
    GOOD,
    carried,
    choose_lr,
    describe_cell,
    missing_runs,
    summarise,
)
from lhkernels.training.sweep_tables import to_markdown

LRS = (0.3, 0.1, 0.03)
THREE = Experiments(
    Preset(
        options={"width": 0.25}, epochs=2, map_epochs=2, lrs=LRS, few_lrs=LRS,
        tuning_seeds=(100, 101, 102), map_seeds=3, init_scales=(0.1, 1.0),
    ),
    {"data": "digits"},
)  # fmt: skip


def pick(config):
    """Optimizer, learning rate and seed of a run."""
    ((name, lr),) = config.lr.items()
    return name, lr, config.seeds[0]


def test_the_learning_rate_with_the_lowest_mean_validation_error_is_chosen(tmp_path):
    errors = {
        ("sgd", 0.3): (0.1, 0.1, 0.9), ("sgd", 0.1): (0.3, 0.3, 0.4),
        ("sgd", 0.03): (0.5, 0.2, 0.4),
        ("sa-sgd", 0.3): (0.2, 0.2, 0.2), ("sa-sgd", 0.1): (0.3, 0.1, 0.3),
        ("sa-sgd", 0.03): (0.1, 0.1, 0.3),
    }  # fmt: skip

    def figures(config):
        name, lr, seed = pick(config)
        # Every other figure would choose another learning rate.
        misleading = {"train_loss": lr, "test_error": lr, "test_loss": lr, "validation_loss": lr}
        return {"validation_error": errors[name, lr][seed - 100], **misleading}

    tuning = THREE.tuning()
    file = made_file(tmp_path / "runs.jsonl", tuning, figures)
    assert choose_lr(tuning, file) == {"sgd": 0.1, "sa-sgd": 0.03}


def test_a_tie_goes_to_the_lower_validation_loss_and_never_to_a_diverged_run(tmp_path):
    def figures(config):
        name, lr, seed = pick(config)
        if lr == 0.3 and seed == 101:
            return {}
        better = 0.1 if name == "sgd" else 0.03
        error = 0.1 if lr == 0.3 else 0.5
        return {"validation_error": error, "validation_loss": 1.0 - 0.1 * (lr == better)}

    tuning = THREE.tuning()
    file = made_file(tmp_path / "runs.jsonl", tuning, figures)
    assert choose_lr(tuning, file) == {"sgd": 0.1, "sa-sgd": 0.03}


def test_mean_and_spread_are_of_the_seeds_that_did_not_diverge(tmp_path):
    cells = {key: cell for key, cell in THREE.tuning().items() if key == ("sgd", 0.1)}
    losses = {100: 0.2, 101: 0.5}
    file = made_file(
        tmp_path / "runs.jsonl",
        cells,
        lambda c: {"train_loss": losses[pick(c)[2]]} if pick(c)[2] in losses else {},
    )
    row = describe_cell(cells["sgd", 0.1], file)
    assert (row["seeds"], row["diverged"], row["lr"]) == (3, 1, 0.1)
    assert row["train_loss"] == pytest.approx(0.35)
    assert row["train_loss_std"] == pytest.approx(0.3 / math.sqrt(2))


def test_differences_are_taken_seed_by_seed(tmp_path):
    cells = tiny_study().figure1({"sgd": 0.02, "sa-sgd": 0.02})
    losses = {("sgd", 0): 0.9, ("sa-sgd", 0): 0.5, ("sgd", 1): 0.4, ("sa-sgd", 1): 0.6}

    def figures(config):
        name, lr, seed = pick(config)
        diverges = name == "sgd" and lr == 0.1 and seed == 1  # with the paper's learning rate
        return {} if diverges else {"train_loss": losses.get((name, seed), 1.0)}

    study = tiny_study()
    everything = cells | study.tuning()
    file = made_file(tmp_path / "runs.jsonl", everything, figures)
    paper, tuned = summarise(study, {"figure1": cells}, file)["figure1"]["paired"]
    differences = [0.5 - 0.9, 0.6 - 0.4]
    assert tuned["train_loss"] == pytest.approx(fmean(differences))
    assert tuned["train_loss_std"] == pytest.approx(stdev(differences))
    assert (tuned["train_loss_lower"], tuned["seeds"]) == (1, 2)
    assert paper["train_loss"] == pytest.approx(-0.4)
    assert (paper["train_loss_std"], paper["train_loss_lower"], paper["seeds"]) == (None, 1, 1)


def heat_map(tmp_path, losses):
    """Rows of a map whose cell (optimizer, scale, lr) has the three seeds' ``losses``."""
    cells = THREE.heatmap()

    def figures(config):
        name, lr, seed = pick(config)
        loss = losses.get((name, config.init_scale, lr), (1.0, 1.0, 1.0))[seed - 100]
        return {} if loss is None else {"train_loss": loss, "validation_error": loss}

    file = made_file(tmp_path / "runs.jsonl", cells, figures)
    return summarise(THREE, {"heatmap": cells}, file), file, cells


MAP = {
    ("sgd", 1.0, 0.1): (0.3, 0.4, 0.5), ("sgd", 1.0, 0.03): (0.6, 0.6, 0.6),
    ("sgd", 0.1, 0.3): (0.1, 0.1, None), ("sgd", 0.1, 0.1): (0.59, 0.59, 0.59),
    ("sa-sgd", 0.1, 0.3): (0.61, 0.61, 0.61), ("sa-sgd", 1.0, 0.3): (0.58, 0.58, 0.58),
    ("sa-sgd", 1.0, 0.1): (None, None, None),
}  # fmt: skip


def test_the_good_region_is_measured_against_the_best_cell_of_both(tmp_path):
    summary, _, _ = heat_map(tmp_path, MAP)
    sgd, amended = summary["heatmap"]["good_region"]
    assert sgd["threshold"] == pytest.approx(GOOD * 0.4)  # not 0.1: a seed of it diverged
    counted = ("cells", "good", "diverged", "scales_with_good_lr", "scales_good_at_one_lr")
    assert [sgd[name] for name in counted] == [6, 3, 1, 2, 2]
    assert [amended[name] for name in counted] == [6, 1, 1, 1, 1]
    assert sgd["share"] == 0.5
    rates = {row["lr"] for row in carried(summary["heatmap"]["rows"]) if row["optimizer"] == "sgd"}
    assert rates == {0.1}
    assert "| SGD | 0.1 | 0.5900 ± 0.0000 | 0.4000 ± 0.1000 |" in to_markdown(summary)


def test_a_seed_that_diverged_is_not_averaged_away_in_the_tables(tmp_path):
    everywhere = {(name, 1.0, 0.1): (0.2, 0.2, 0.2) for name in COMPARED}
    summary, _, _ = heat_map(tmp_path, everywhere | {("sgd", 0.1, 0.1): (0.2, 0.2, None)})
    assert "| SGD | 0.1 | diverged | 0.2000 ± 0.0000 |" in to_markdown(summary)


def test_where_all_diverged_nothing_is_good(tmp_path):
    pytest.importorskip("matplotlib")
    from lhkernels.training.sweep_plots import draw

    for study in (THREE, tiny_study()):
        tuned = dict.fromkeys(COMPARED, 0.1)
        parts = {p: study.figure1(tuned) if p == "figure1" else study.map_of(p) for p in PARTS}
        cells = {(part, *key): cell for part, of in parts.items() for key, cell in of.items()}
        cells |= study.tuning()
        file = made_file(tmp_path / "runs.jsonl", cells, lambda config: {})
        summary = summarise(study, parts, file)
        for region in summary["heatmap"]["good_region"]:
            assert (region["good"], region["threshold"]) == (0, None)
            assert region["diverged"] == region["cells"] > 0
        json.dumps(summary, allow_nan=False)
        assert "diverged" in to_markdown(summary)
    for part in PARTS:
        draw(part, summary, file, parts[part], tmp_path / f"{part}.png")
        assert (tmp_path / f"{part}.png").read_bytes().startswith(b"\x89PNG")


def drawn(monkeypatch, part, summary, file, cells, path):
    """The figure of a part, which is not written."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from lhkernels.training.sweep_plots import draw

    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, at, **_: figures.append(figure) or at.write_bytes(b"")
    )
    draw(part, summary, file, cells, path)
    return figures[0]


def test_the_heat_map_shows_every_cell_and_frames_the_good_ones(tmp_path, monkeypatch):
    summary, file, cells = heat_map(tmp_path, MAP)
    figure = drawn(monkeypatch, "heatmap", summary, file, cells, tmp_path / "map.png")
    assert "mean, n = 3" in figure.get_suptitle()
    for name, panel in zip(COMPARED, figure.axes, strict=True):
        rows = [row for row in summary["heatmap"]["rows"] if row["optimizer"] == name]
        texts = {tuple(map(round, text.get_position())): text.get_text() for text in panel.texts}
        for row in rows:
            place = (0.03, 0.1, 0.3).index(row["lr"]), (0.1, 1.0).index(row["init_scale"])
            assert texts[place] == ("div." if row["diverged"] else f"{row['train_loss']:.2f}")
        framed = sum(not patch.get_fill() for patch in panel.patches)
        hatched = sum(patch.get_hatch() is not None for patch in panel.patches)
        (region,) = (r for r in summary["heatmap"]["good_region"] if r["optimizer"] == name)
        assert (framed, hatched) == (region["good"], region["diverged"])


def test_curves_show_mean_range_and_the_runs_that_ended(tmp_path, monkeypatch):
    study = tiny_study()
    cells = study.figure1({"sgd": 0.02, "sa-sgd": 0.02})

    def figures(config):
        name, lr, seed = pick(config)
        return {} if (name, lr, seed) == ("sgd", 0.02, 1) else {"train_loss": 0.2 + 0.4 * seed}

    file = made_file(tmp_path / "runs.jsonl", cells | study.tuning(), figures)
    summary = summarise(study, {"figure1": cells}, file)
    figure = drawn(monkeypatch, "figure1", summary, file, cells, tmp_path / "curves.png")
    assert "range" in figure.get_suptitle()
    assert "n = 2" in figure.get_suptitle()
    paper, tuned = figure.axes[0], figure.axes[2]
    assert list(paper.lines[0].get_ydata()) == pytest.approx([0.4, 0.4])
    assert paper.collections[0].get_paths()[0].get_extents().ymax == pytest.approx(0.6)
    assert list(tuned.lines[0].get_ydata()) == pytest.approx([0.2, 0.2])
    texts = [text.get_text() for text in tuned.get_legend().get_texts()]
    assert texts == ["SGD, 0.02\n(1 of 2 diverged)", "SA-SGD, 0.02"]


def test_every_run_of_a_study_is_asked_for(tmp_path):
    file = ResultFile(tmp_path / "runs.jsonl")
    study = committed_study()
    assert len(missing_runs(study.tuning(), file)) == 2 * 6 * 2
    assert len(missing_runs(study.figure1({"sgd": 0.01, "sa-sgd": 0.01}), file)) == 2 * 2 * 5
    shared = study.figure1({"sgd": 0.1, "sa-sgd": 0.005})  # tuned is the paper's
    assert len(missing_runs(shared, file)) == 2 * 5
    assert len(missing_runs(study.heatmap(), file)) == 5 * 6 * 2
