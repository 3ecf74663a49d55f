"""What the tests of bench/study.py share: its folder on the path, a tiny study, made-up runs."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))

import study  # noqa: E402

TINY = {"data": "digits", "limit": 64, "validation": 50, "batch_size": 32, "width": 0.25}


def pick(config):
    """Optimizer, learning rate and seed of a run."""
    ((name, lr),) = config.lr.items()
    return name, lr, config.seeds[0]


def made_line(config, final):
    """A run's line without the run: ``final`` over 0.5, diverged if it is {}."""
    ended = dict.fromkeys(study.FINAL, 0.5 if final else None) | final
    return {
        "key": study.run_key(config.to_dict()), "config": config.to_dict(), "final": ended,
        "status": "ok" if final else "diverged",
        "history": {name: [ended.get(name)] * config.epochs for name in study.HISTORY},
    }  # fmt: skip


def a_study(preset, out=Path("nowhere"), train=True, **given):
    """One whose parts can be called."""
    none = dict.fromkeys(("data", "data_dir", "epochs", "limit"))
    made = study.Study(SimpleNamespace(**none | given, preset=preset, out=out, minutes=math.inf))
    made.may_train = train
    return made


def tables(text):
    """The rows of each Markdown table, its head left out."""
    blocks = [block.splitlines()[2:] for block in text.split("\n\n") if block.startswith("|")]
    return [[[c.strip() for c in row.strip("|").split("|")] for row in rows] for rows in blocks]
