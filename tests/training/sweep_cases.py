"""What the tests of the training sweep share: a tiny study, its script, results made by hand."""

import importlib.util
import json
from pathlib import Path

from lhkernels.training import TrainConfig
from lhkernels.training.experiments import PRESETS, Experiments, Preset
from lhkernels.training.sweep import FINAL, HISTORY, ResultFile, run_key

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "study.py"
COMMITTED = ROOT / "bench" / "results" / "xeon-2-cores" / "study"

# A run of some ten milliseconds. The digits' number of held-out images is not the preset's.
TINY = Preset(
    options={"model": "vgg-small", "width": 0.25, "batch_size": 32, "patience": 0},
    epochs=2,
    map_epochs=1,
    lrs=(1e30, 0.03, 0.01),  # the first diverges
    few_lrs=(0.03, 0.01),
    tuning_seeds=(100,),
    seeds=(0, 1),
    init_scales=(1.0, 100.0),
    widths=(0.25, 0.5),
    depths=(1, 2),
)
TINY_OPTIONS = {"data": "digits", "limit": 64}


def tiny_study():
    return Experiments(TINY, TINY_OPTIONS)


def committed_study():
    return Experiments(PRESETS["small"], {"data": "fashion-mnist", "data_dir": None})


def load_script():
    spec = importlib.util.spec_from_file_location("study_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def tiny_config(name="sgd", lr=0.01, seed=0, **options):
    defaults = {"limit": 64, "validation": 50, "batch_size": 32, "width": 0.25, "epochs": 2}
    return TrainConfig(optimizers=(name,), lr={name: lr}, seeds=(seed,), **{**defaults, **options})


def made_result(config, **final):
    """A run's line without the run: ``final`` figures over 0.5, or None throughout if it is {}."""
    diverged = not final
    figures = dict.fromkeys(FINAL, None if diverged else 0.5) | final
    return {
        "key": run_key(config),
        "config": {k: v for k, v in config.to_dict().items() if k not in ("data_dir", "device")},
        "status": "diverged" if diverged else "ok",
        "epochs": config.epochs,
        "history": {name: [figures.get(name)] * config.epochs for name in HISTORY},
        "final": figures,
        "seconds": 1.0,
    }


def made_file(path, cells, figures):
    """A file with a line for every run of ``cells``; ``figures(config)`` gives its final ones."""
    configs = {run_key(config): config for cell in cells.values() for config in cell}
    lines = [json.dumps(made_result(c, **figures(c))) + "\n" for c in configs.values()]
    path.write_text("".join(lines))
    return ResultFile(path)


def lines_without_seconds(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
