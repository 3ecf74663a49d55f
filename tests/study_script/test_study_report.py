"""What bench/study.py makes of runs, which are made up here: choices, tables, pictures."""

import math
from statistics import fmean, stdev

import pytest
from script_cases import a_study, pick, study, tables


@pytest.fixture
def three(monkeypatch):
    """A preset of three tuning and three other seeds."""
    preset = study.Preset({"data": "digits", "epochs": 2}, (100, 101, 102), (0, 1, 2))
    monkeypatch.setattr(study, "PRESETS", {"small": preset})
    monkeypatch.setattr(study, "LRS", (0.3, 0.1, 0.03))
    monkeypatch.setitem(study.GRIDS, "heatmap", (study.LRS, {"init_scale": (0.1, 1.0)}))


def test_the_lowest_mean_error_then_loss_chooses_and_never_a_diverged_seed(three, made_up):
    errors = {0.3: (0.1, 0.1, 0.9), 0.1: (0.3, 0.3, 0.4), 0.03: (0.5, 0.2, 0.4)}

    def figures(config):
        name, lr, seed = pick(config)
        if seed < 100 or name == "sgd":  # every other figure would choose another learning rate
            misleading = dict.fromkeys(("train_loss", "test_error", "validation_loss"), lr)
            return {"validation_error": errors[lr][seed - 100] if seed >= 100 else 1, **misleading}
        tie = {"validation_error": 0.1 if lr == 0.3 else 0.5, "validation_loss": 1 + (lr == 0.1)}
        return {} if (lr, seed) == (0.3, 101) else tie

    asked = made_up(figures)
    text, _ = study.figure1(a_study("small"), "figure1")
    drawn = {pick(config)[:2] for config in asked if config.seeds[0] < 100}
    assert drawn == {("sgd", 0.1), ("sa-sgd", 0.005), ("sa-sgd", 0.03)}  # the paper's 0.1 and 0.005
    assert [row[1:] for row in tables(text)[2]] == [
        ["36.7% (0.300)", "**33.3% (0.100)**", "36.7% (0.030)"],
        ["diverged", "50.0% (0.500)", "**50.0% (0.500)**"],
    ]


def test_figures_are_of_the_seeds_that_did_not_diverge_and_differences_seed_by_seed(three, made_up):
    losses = {"sgd": (0.9, 0.4, None), "sa-sgd": (0.5, 0.6, 0.7)}

    def figures(config):
        name, _, seed = pick(config)
        loss = losses[name][seed] if seed < 100 else 1.0
        return {} if loss is None else {"train_loss": loss, "test_error": loss / 2}

    made_up(figures)
    text, figure = study.figure1(a_study("small"), "figure1")
    rows, gains, _ = tables(text)
    mean, spread = fmean((0.9, 0.4)), stdev((0.9, 0.4))
    told = [f"{mean:.4f} ± {spread:.4f}", f"{50 * mean:.2f} % ± {50 * spread:.2f}"]
    assert rows[0] == ["paper", "SGD", "0.1", "3", "1", *(f"{t} (1 of 3 diverged)" for t in told)]
    assert rows[1][:6] == ["paper", "SA-SGD", "0.005", "3", "0", "0.6000 ± 0.1000"]
    difference = f"{fmean((-0.4, 0.2)):.4f} ± {stdev((-0.4, 0.2)):.4f}"
    assert [(row[1], row[3], row[4]) for row in gains] == [(difference, "1 of 2", "1 of 2")] * 2
    assert "range over the seeds, n = 3" in figure.get_suptitle()
    panel = figure.axes[0]
    assert list(panel.lines[0].get_ydata()) == pytest.approx([mean, mean])
    assert panel.collections[0].get_paths()[0].get_extents().ymax == pytest.approx(0.9)
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["SGD, 0.1\n(1 of 3 diverged)", "SA-SGD, 0.005"]


def test_the_good_region_is_measured_against_the_best_run_of_both(three, made_up):
    losses = {
        ("sgd", 1.0, 0.1): 0.4, ("sgd", 1.0, 0.03): 0.6, ("sgd", 0.1, 0.3): None,
        ("sgd", 0.1, 0.1): 0.59, ("sa-sgd", 0.1, 0.3): 0.61, ("sa-sgd", 1.0, 0.3): 0.58,
        ("sa-sgd", 1.0, 0.1): None,
    }  # fmt: skip

    def figures(config):
        loss = losses.get((pick(config)[0], config.init_scale, pick(config)[1]), 1.0)
        return {} if loss is None else {"train_loss": loss, "validation_error": loss}

    made_up(figures)
    text, figure = study.grid(a_study("small"), "heatmap")
    best, region, carried = tables(text)
    assert ["SGD", "1", "0.1", "0.4000", "50.00 %"] in best
    assert "here 0.6:" in text
    assert region == [
        ["SGD", "3 of 6", "50 %", "1", "2 of 2", "2 of 2"],
        ["SA-SGD", "1 of 6", "17 %", "1", "1 of 2", "1 of 2"],
    ]
    assert carried == [["SGD", "0.1", "0.5900", "0.4000"], ["SA-SGD", "0.3", "0.6100", "0.5800"]]
    for name, panel, good in zip(study.COMPARED, figure.axes, (3, 1), strict=True):
        texts = {t.get_position(): (t.get_text(), t.get_weight()) for t in panel.texts}
        for x, y in ((x, y) for x in range(3) for y in range(2)):
            loss = losses.get((name, (0.1, 1.0)[y], (0.03, 0.1, 0.3)[x]), 1.0)
            weight = "bold" if loss is not None and loss <= 0.6 else "normal"
            assert texts[x, y] == ("div." if loss is None else f"{loss:.2f}", weight)
        assert sum(not patch.get_fill() for patch in panel.patches) == good  # its frames


def test_where_all_diverged_nothing_is_good(three, made_up, tmp_path):
    made_up(lambda config: {})
    for part in ("figure1", "width", "depth", "heatmap"):
        text, figure = {"figure1": study.figure1}.get(part, study.grid)(a_study("small"), part)
        figure.savefig(tmp_path / "picture.png")
    assert [row[1:4] for row in tables(text)[1]] == [["0 of 6", "0 %", "6"]] * 2


def test_the_grid_grows_until_no_end_is_best_and_seeds_are_kept_apart(tiny, made_up):
    best = {"sgd": 0.01, "sa-sgd": 3.0}  # below and above the grid

    def figures(config):
        distance = abs(math.log10(pick(config)[1] / best[pick(config)[0]]))
        return {"validation_loss": 1 + distance, "test_error": 1 - distance / 10}

    asked = made_up(figures)
    text, _ = study.scales(a_study("scales"), "scales")
    tried = {}
    for config in asked:
        name, lr, seed = pick(config)
        tried.setdefault((seed // 100, config.init_scale, name), set()).add(lr)
    # One grid for both, its ends a rung beyond the best of each; the test error chose nothing.
    grid = {0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0}
    assert tried == {
        (1, 1.0, "sgd"): grid, (1, 1.0, "sa-sgd"): grid, (1, 10.0, "sgd"): grid - {3.0, 10.0},
        **{(0, scale, name): {lr} for scale in (1.0, 10.0) for name, lr in best.items()},
        (2, 1.0, "sgd"): {0.003, 0.01, 0.03}, (2, 1.0, "sa-sgd"): {1.0, 3.0, 9.0},
    }  # fmt: skip
    assert [row[1] for row in tables(text)[1]] == ["0.01", "3", ""]
