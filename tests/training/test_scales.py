"""bench/scales.py: how it chooses learning rates, and what the pages say of its committed runs."""

import importlib.util
import json
import math
import re
from statistics import fmean, stdev

import pytest
from sweep_cases import ROOT

from lhkernels.training import sweep
from lhkernels.training.config import DEFAULTS
from lhkernels.training.sweep import ResultFile

pytest.importorskip("sklearn")

RESULTS = ROOT / "bench" / "results" / "epyc-2-cores"
spec = importlib.util.spec_from_file_location("scales_script", ROOT / "bench" / "scales.py")
scales = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scales)


@pytest.fixture
def tiny(monkeypatch):
    """A setting of some milliseconds a run; sgd's best rate lies beyond both ends of the grid."""
    options = {"data": "digits", "limit": 64, "validation": 50, "batch_size": 32, "width": 0.25}
    monkeypatch.setattr(scales, "SETTINGS", {"tiny": {**options, "epochs": 1}})
    monkeypatch.setattr(scales, "SCALES", {"tiny": (1.0, 10.0)})
    monkeypatch.setattr(scales, "TUNING_SEEDS", range(100, 102))
    monkeypatch.setattr(scales, "SEEDS", range(2))
    monkeypatch.setattr(scales, "CHECK_SEEDS", range(200, 202))
    monkeypatch.setattr(scales, "GRID", range(-1, 1))
    sweep._loaded.clear()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_grid_grows_until_no_end_is_best_and_seeds_are_kept_apart(
    tiny, monkeypatch, tmp_path, capsys
):
    best_rung = {"sgd": -4, "sa-sgd": 1}  # 0.01 and 3: below and above the grid
    plain, tested = sweep.train_one, []

    def made_up(config, device):
        ((name, lr),) = config.lr.items()
        result = plain(config, device)
        distance = abs(math.log10(lr / scales.rate(best_rung[name])))
        result["final"] |= {"validation_loss": 1 + distance, "test_error": 1 - distance / 10}
        tested.append((config.init_scale, name, lr, config.seeds[0]))
        return result

    monkeypatch.setattr(sweep, "train_one", made_up)
    assert scales.main(["tiny", "--out", str(tmp_path)]) == 0
    tried = {(scale, name): set() for scale, name, *_ in tested}
    for scale, name, lr, seed in tested:
        if seed >= 100 and seed < 200:
            tried[scale, name].add(lr)
    # One grid for both, its ends a rung beyond the best of each; the test error chose nothing.
    grid = {0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0}
    assert tried[1.0, "sgd"] == tried[1.0, "sa-sgd"] == grid
    assert tried[10.0, "sgd"] == {0.003, 0.01, 0.03, 0.1, 0.3, 1.0}
    assert tried[10.0, "sa-sgd"] == set()
    compared = {run[:3] for run in tested if run[3] < 100}
    assert compared == {(s, n, lr) for s in (1.0, 10.0) for n, lr in (("sgd", 0.01), ("sa-sgd", 3))}
    around = {run[1:3] for run in tested if run[3] >= 200}
    assert around == {("sgd", lr) for lr in (0.003, 0.01, 0.03)} | {
        ("sa-sgd", lr) for lr in (1.0, 3.0, 9.0)
    }
    summary = capsys.readouterr().out
    assert (tmp_path / "summary.md").read_text() == summary.removesuffix("\n")
    count = len(tested)
    assert scales.main(["tiny", "--out", str(tmp_path)]) == 0
    assert len(tested) == count == len(lines(tmp_path / "runs.jsonl"))


def test_a_rate_at_which_a_seed_diverged_is_not_chosen_and_is_shown(tiny, tmp_path, monkeypatch):
    plain = sweep.train_one

    def made_up(config, device):
        ((_, lr),) = config.lr.items()
        result = plain(config, device)
        result["final"]["validation_loss"] = lr  # the smaller the better...
        if lr < 0.1 and config.seeds[0] == 101:  # ...but for one seed
            result |= {"status": "diverged", "final": dict.fromkeys(result["final"])}
        return result

    monkeypatch.setattr(sweep, "train_one", made_up)
    made = scales.Scales("tiny", ResultFile(tmp_path / "runs.jsonl"), jobs=1)
    assert made.best == {"sgd": 0.1, "sa-sgd": 0.1}
    row = next(line for line in made.tuned().splitlines() if line.startswith("| 1 | sgd"))
    assert row == "| 1 | sgd | 1.000 | 0.300 | **0.100** | diverged |"


@pytest.fixture(scope="module", params=["digits", "digits-no-decay", "fashion-mnist"])
def committed(request):
    """What the committed runs say; none is missing."""
    folder = RESULTS / f"scales-{request.param}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scales, "run_all", lambda due, *_, **__: due and pytest.fail("runs missing"))
        return scales.Scales(request.param, ResultFile(folder / "runs.jsonl"), jobs=1), folder


def test_the_committed_summary_is_that_of_the_runs(committed):
    made, folder = committed
    assert (folder / "summary.md").read_text() == made.summary()
    runs = lines(folder / "runs.jsonl")
    used = [*made.tuning.values(), *made.compared.values(), *made.retuned.values()]
    used += [cell for cells in made.around.values() for cell in cells]
    assert len(runs) == len({sweep.run_key(config) for cell in used for config in cell})


def test_the_tables_figures_are_means_of_five_seeds(committed):
    made, folder = committed
    runs = lines(folder / "runs.jsonl")
    for (name, scale), cell in made.compared.items():
        finals = [
            run["final"]
            for run in runs
            if run["config"]["lr"] == {name: made.best[name]}
            and run["config"]["init_scale"] == scale
            and run["config"]["seeds"][0] < 5
        ]
        losses = [final["train_loss"] for final in finals]
        assert len(losses) == 5
        shown = made.shown(cell)
        assert shown.startswith(f"{fmean(losses):.4f} ± {stdev(losses):.4f}<br>")
        errors = [100 * final["test_error"] for final in finals]
        assert shown.endswith(f"{fmean(errors):.1f} % ± {stdev(errors):.1f}")


def test_neighbouring_rates_are_not_clearly_better(committed):
    """Not by more than the spread over the seeds, on seeds that chose nothing."""
    made, _ = committed
    for lower, chosen, upper in made.around.values():
        losses = made.finals(chosen, "validation_loss")
        for other in (lower, upper):
            assert made.mean(other) > fmean(losses) - stdev(losses)


@pytest.mark.parametrize("data", ["digits", "fashion-mnist"])
def test_the_defaults_of_train_are_the_chosen_rates(data):
    page = (RESULTS / f"scales-{data}" / "summary.md").read_text()
    for name, title in scales.NAMES.items():
        assert f"| {title} | {DEFAULTS[data].lr[name]:g} |" in page


def test_the_pages_tables_are_the_committed_ones():
    text = {page: (ROOT / page).read_text() for page in ("README.md", "docs/training-study.md")}
    for page, setting in (
        ("README.md", "digits"), ("README.md", "fashion-mnist"),
        ("docs/training-study.md", "digits-no-decay"),
    ):  # fmt: skip
        summary = (RESULTS / f"scales-{setting}" / "summary.md").read_text()
        table = re.search(r"## Comparison.*?\n\n(.*?)\n\n##", summary, re.DOTALL)[1]
        assert table in text[page], f"{page} lacks the table of {setting}"


def test_the_demo_is_the_setting_that_was_tuned():
    command = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    words = command[1].replace("\\\n", " ").split()
    options = dict(zip(words[4:-1:2], words[5:-1:2], strict=True))
    assert words[-1] == "--overwrite"
    assert options.pop("--out") == "runs/demo"
    assert options == {
        "--data": "digits", "--validation": str(scales.SETTINGS["digits"]["validation"]),
        "--init-scale": ",".join(f"{scale:g}" for scale in scales.SCALES["digits"]),
        "--seeds": "0,1,2",
    }  # fmt: skip
