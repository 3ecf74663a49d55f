"""The training study: SGD beside scale-amended SGD, from runs to tables and pictures.

    python bench/study.py --preset small --data fashion-mnist --out DIR [--only figure1,heatmap]

writes to DIR runs.jsonl (a line per finished run; a second call trains only what is missing),
environment.json, summary.md, which it prints, and study-*.png. No network, no installation needed.

presets:
  small     a VGG of 5 convolutions, 6000 images of 14x14 (28x28 halved): half an hour of one core
  full      VGG13, 20000 images of 32x32: sized for one H100, minutes a part
  scales-*  from badly scaled initial weights, as `train` does it by default; one part, scales
parts of small and full:
  figure1   the curves of Zhang, Chen and Liu's Figure 1: their learning rates, and tuned ones
  heatmap, heatmap-no-decay, width, depth   learning rate x initial scale, channels, convolutions
exit status: 0 done, 1 runs are still missing (--minutes, --plots-only), 2 an option or a file is
wrong, 130 interrupted (finished runs are saved; the same command goes on)
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import pandas as pd
    import study_report as report
    from joblib import Parallel, delayed
    from rich import console, progress

    from lhkernels import environment
    from lhkernels.training import TrainConfig, TrainingError
    from lhkernels.training.config import DATA, DEFAULTS, DEVICES
    from lhkernels.training.data import load
    from lhkernels.training.loop import Run, pick_device
except ImportError as missing:
    print(f"study: error: {missing}; pip install lhkernels[bench]", file=sys.stderr)
    sys.exit(2)


class Preset(NamedTuple):
    options: dict[str, Any]
    tuning_seeds: Sequence[int]  # that learning rates are chosen on; grids have the first
    seeds: Sequence[int] = range(5)  # of all other figures
    init_scales: Sequence[float] = ()  # of scales


# patience: the paper's is 10 of 300 epochs; a short run is to halve its learning rate as well.
SMALL = {"data": "fashion-mnist", "model": "vgg-small", "shrink": 2, "limit": 6000,
         "validation": 2000, "batch_size": 64, "patience": 1, "epochs": 16}  # fmt: skip
FULL = {"data": "fashion-mnist", "model": "vgg13", "limit": 20_000,
        "validation": 5000, "batch_size": 128, "patience": 2, "epochs": 20}  # fmt: skip
ON_DIGITS = {"shrink": 1, "validation": 200, "limit": None}  # 1347 training images of 8x8
# What `train` has as its defaults, and `make demo` and the README show.
DIGITS = {"data": "digits", "validation": 300}
FASHION = {"data": "fashion-mnist", "validation": 2000, "limit": 6000, "shrink": 2, "epochs": 5}
FIVE, SCALES = range(100, 105), (0.1, 0.3, 1.0, 3.0, 10.0)
PRESETS = {
    "small": Preset(SMALL, (100, 101)),
    "full": Preset(FULL, (100,), range(3)),
    "scales-digits": Preset(DIGITS, FIVE, init_scales=SCALES),
    "scales-digits-no-decay": Preset(DIGITS | {"weight_decay": 0.0}, FIVE, init_scales=SCALES),
    "scales-fashion-mnist": Preset(FASHION, FIVE, init_scales=(0.1, 1.0, 10.0)),
}
COMPARED = ("sgd", "sa-sgd")
LRS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
INIT_SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
GRIDS: dict[str, tuple[Sequence[float], dict[str, Sequence[Any]]]] = {  # lrs x other options
    "heatmap": (LRS, {"init_scale": INIT_SCALES}),
    "heatmap-no-decay": (LRS, {"init_scale": INIT_SCALES, "weight_decay": [0.0]}),
    "width": (LRS[1:5], {"width": (0.25, 0.5, 1.0, 2.0)}),
    "depth": (LRS[1:5], {"depth": (1, 2, 3)}),
}
RUNGS = (-6, 0)  # of a ladder of learning rates: ..., 0.01, 0.03, 0.1, 0.3, and rung 0 is 1
CHECK_SEEDS = range(200, 205)
TOLD = ("lr", "weight_decay", "init_scale", "width", "depth", "seeds", "status", "train_loss")
POOL = {"return_as": "generator_unordered", "pre_dispatch": "n_jobs", "idle_worker_timeout": 5}
MADE = ("device", "gpu", "cpu", "threads", "jobs", "torch", "python")

# Parts: each asks the study for runs, learns from them what to ask next, and makes a section.


def figure1(study: Study, _: str) -> report.Section:
    """One grid of learning rates for both optimizers; curves of the paper's and of the best."""
    tuning = study.runs("tuning", dict.fromkeys(COMPARED, LRS), study.preset.tuning_seeds)
    # The paper has CIFAR only; sets of ten classes get CIFAR-10's rates.
    paper = DEFAULTS["cifar100" if study.options["data"] == "cifar100" else "cifar10"].lr
    paper = {name: [paper[name]] for name in COMPARED}
    curves = [
        study.runs(f"curves, {kind}", lrs, study.preset.seeds).assign(rates=kind)
        for kind, lrs in (("paper", paper), ("tuned", report.best(tuning, report.BY_ERROR)))
    ]
    return report.figure1(tuning, pd.concat(curves))


def grid(study: Study, part: str) -> report.Section:
    """Learning rate x initial scale, width or depth."""
    lrs, options = GRIDS[part]
    lrs, seeds = dict.fromkeys(COMPARED, lrs), study.preset.tuning_seeds[:1]
    return report.grid(part, study.runs(part, lrs, seeds, **options, epochs=[8]))


def scales(study: Study, _: str) -> report.Section:
    """Both optimizers at all scales with their rate of scale one, and SGD tuned anew for each."""
    seeds, init_scales = study.preset.seeds, study.preset.init_scales
    tuned, anew = [tune(study, 1.0, COMPARED)], []
    best = report.best(tuned[0], report.BY_LOSS)
    compared = study.runs("comparison", best, seeds, init_scale=init_scales)
    lrs = {name: [float(f"{lr * by:.1g}") for by in (1 / 3, 1, 3)] for name, [lr] in best.items()}
    around = study.runs("neighbours", lrs, CHECK_SEEDS)  # 0.1 / 3 is 0.03 here
    for scale in init_scales:
        tuned.append(tune(study, scale, ("sgd",)))
        best = report.best(tuned[-1], report.BY_LOSS)
        anew.append(study.runs("SGD tuned anew", best, seeds, init_scale=[scale]))
    return report.scales(pd.concat(tuned), compared, pd.concat(anew), around)


def tune(study: Study, scale: float, names: Sequence[str]) -> report.Runs:
    """A grid of learning rates that grows while an end of it is the best of one of ``names``."""
    low, high = RUNGS
    while True:
        lrs = [float(f"{(1, 3)[rung % 2]}e{rung // 2}") for rung in range(low, high + 1)]
        grid, seeds = dict.fromkeys(names, lrs), study.preset.tuning_seeds
        runs = study.runs(f"tuning at scale {scale:g}", grid, seeds, init_scale=[scale])
        best = report.best(runs, report.BY_LOSS).values()
        if lrs[:1] not in best and lrs[-1:] not in best:
            return runs
        low, high = (low, high + 1) if lrs[-1:] in best else (low - 1, high)


# Runs: each follows from its configuration alone, by which its line is found.

HISTORY = ("train_loss", "validation_loss", "validation_error", "lr")
FINAL = ("train_loss", "validation_loss", "validation_error", "test_loss", "test_error")
LOADED = ("data", "data_dir", "model", "limit", "validation", "shrink")  # decide about the images


def run_key(options: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for all options of a run but where it takes place."""
    decisive = {name: options[name] for name in options if name not in ("data_dir", "device")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def images(device: torch.device, *options: Any) -> Any:
    """A data set, kept for the next run of this process."""
    return load(TrainConfig(**dict(zip(LOADED, options, strict=True)))).to(device)


def train_one(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The line of a run; the test images are looked at only at its end, and decide nothing."""
    torch.set_num_threads(1)
    data = images(device, *(getattr(config, name) for name in LOADED))
    run = Run(config, config.run_keys()[0], data, device)
    while len(run.history) < config.epochs and not run.diverged:
        run.run_epoch(test=len(run.history) == config.epochs - 1)
    options = config.to_dict()
    del options["data_dir"], options["device"]
    line = {
        "key": run_key(options),
        "config": options,
        "status": "diverged" if run.diverged else "ok",
        "epochs": len(run.history),
        "history": {name: [record.get(name) for record in run.history] for name in HISTORY},
        "final": {name: run.history[-1].get(name) for name in FINAL},  # None if diverged
        "seconds": round(sum(record["seconds"] for record in run.history), 2),
    }
    return json.loads(json.dumps(line), parse_float=lambda text: float(f"{float(text):.6g}"))


def read_runs(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a file by key. One that a kill cut short is dropped."""
    lines = {}
    text = path.read_text(errors="replace") if path.exists() else ""
    for number, content in enumerate(text.split("\n")[:-1], start=1):  # the last is incomplete
        try:
            line = json.loads(content)
            if not line.keys() >= {"status", "history"} or not line["final"].keys() >= {*FINAL}:
                raise KeyError("status, history or final")
            lines[run_key(line["config"])] = line
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{path}, line {number}: holds no finished run ({error!r}); delete the line to "
                "train that run again"
            ) from error
    return lines


def append_run(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, which is on the disk when this returns."""
    with path.open("ab") as file:
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class Lacking(Exception):
    """Runs that are missing, and not to be trained now."""


class Study:
    """One call: its options, and the runs that there are."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.preset, self.may_train = args, PRESETS[args.preset], False
        names = ("data", "data_dir", "epochs", "limit")
        self.given = {name: given for name in names if (given := getattr(args, name)) is not None}
        on_digits = ON_DIGITS if args.data == "digits" != self.preset.options["data"] else {}
        self.options = {**self.preset.options, **on_digits, **self.given}
        self.out = args.out or Path(f"runs/study-{args.preset}-{self.options['data']}")
        self.lines = read_runs(self.out / "runs.jsonl")
        self.until = time.time() + 60 * args.minutes

    def runs(self, what: str, lrs: Mapping[str, Sequence[float]], seeds: Sequence[int],
             **options: Sequence[Any]) -> report.Runs:  # fmt: skip
        """A row a run, for all optimizers, learning rates, seeds and options; trains if it may."""
        wanted = {}
        for name in lrs:
            for lr, seed, *values in itertools.product(lrs[name], seeds, *options.values()):
                run = {"optimizers": (name,), "lr": {name: lr}, "seeds": (seed,)}
                more = {**dict(zip(options, values, strict=True)), **self.given}
                config = TrainConfig(**{**self.options, **more, **run})
                wanted[run_key(config.to_dict())] = config
        due = [config for key, config in wanted.items() if key not in self.lines]
        if due and self.may_train and time.time() < self.until:
            self.train(what, due)
        if missing := len(wanted.keys() - self.lines.keys()):
            raise Lacking(f"{missing} runs ({what})")
        return report.frame(self.lines[key] for key in wanted)

    def train(self, what: str, due: list[TrainConfig]) -> None:
        """Whatever stops it, the runs that have ended are in the file."""
        device = pick_device(self.args.device)
        load(due[0])  # what is wrong with the data is told before a file is written
        self.out.mkdir(parents=True, exist_ok=True)
        self.environment({**environment.describe(device), "threads": 1, "jobs": self.args.jobs})
        in_time = (config for config in due if time.time() < self.until)
        pool = Parallel(self.args.jobs, **POOL)
        with closing(pool(delayed(train_one)(config, device) for config in in_time)) as lines:
            stderr = console.Console(stderr=True)
            for number, line in enumerate(progress.track(lines, what, len(due), console=stderr), 1):
                append_run(self.out / "runs.jsonl", line)
                self.lines[line["key"]] = line
                run = {**line["config"], **line["final"], "status": line["status"]}
                told = ", ".join(f"{name} {run[name]}" for name in TOLD)
                print(f"{what} {number}/{len(due)}: {told}", file=sys.stderr, flush=True)

    def environment(self, here: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What is noted of where the runs were made; refuses to mix those of two machines."""
        path = self.out / "environment.json"
        try:
            there = dict(json.loads(path.read_text())) if path.exists() else {}
        except (ValueError, TypeError) as error:
            raise TrainingError(f"{path}: is damaged ({error}); delete it") from error
        for name in ("gpu", "cpu", "torch"):
            if here and there and there.get(name) != here[name]:
                raise TrainingError(
                    f"--out {self.out}: its runs were made with {name} {there.get(name)}, here it "
                    f"is {here[name]}; name another --out"
                )
        if here:
            path.write_text(json.dumps({name: here[name] for name in MADE}, indent=1) + "\n")
        return there

    def make(self) -> int:
        """Train what is missing of the parts asked for; summarise and draw what is complete."""
        parts = ["scales"] if self.preset.init_scales else ["figure1", *GRIDS]
        only = parts if self.args.only is None else self.args.only.split(",")
        for name in set(only).difference(parts):
            raise TrainingError(f"--only {self.args.only}: {name!r} is no part; parts: {parts}")
        if self.args.plots_only and not self.lines:
            raise TrainingError(
                f"--out {self.out}: holds no runs to draw; name the folder that does, or leave out "
                "--plots-only to train them"
            )
        sections, lacks = {}, []
        for part in parts:
            self.may_train = part in only and not self.args.plots_only
            try:
                sections[part] = {"figure1": figure1, "scales": scales}.get(part, grid)(self, part)
            except Lacking as lack:
                lacks += [f"{part}: lacks {lack}; not summarised\n"] if part in only else []
        if sections:  # else there may be a summary of other runs, which is not to be lost
            self.write(sections)
        sys.stderr.writelines(lacks)
        return 1 if lacks else 0

    def write(self, sections: Mapping[str, report.Section]) -> None:
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        made = ", ".join(f"{name} {value}" for name, value in self.environment().items() if value)
        heads = f"# Training study: {self.args.preset}", f"With {options}.", f"Made with {made}."
        text = "\n\n".join([*heads, *(text for text, _ in sections.values())])
        (self.out / "summary.md").write_text(text + "\n")
        images = self.args.images or self.out
        images.mkdir(parents=True, exist_ok=True)
        for part, (_, figure) in sections.items():
            if figure is not None:
                figure.savefig(images / f"study-{part}.png")
        print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--preset", choices=PRESETS, default="small")
    p.add_argument("--data", choices=DATA, help="(default: the preset's)")
    p.add_argument("--data-folder", "--data-dir", dest="data_dir", metavar="DIR", help="its files")
    p.add_argument("--device", choices=DEVICES, default="auto")
    p.add_argument("--out", metavar="DIR", type=Path, help="(default: runs/study-PRESET-DATA)")
    p.add_argument("--images", metavar="DIR", type=Path, help="folder of the plots (default: out)")
    p.add_argument("--only", metavar="A,B", help="parts (default: all)")
    p.add_argument("--plots-only", action="store_true", help="train nothing; summary and plots")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    p.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many")
    p.add_argument("--epochs", type=int, metavar="N", help="in place of the preset's")
    p.add_argument("--limit", type=int, metavar="N", help="in place of the preset's")
    args = p.parse_args(argv)
    if args.jobs < 1 or not args.minutes > 0:
        p.error(f"--jobs {args.jobs} --minutes {args.minutes:g}: give numbers above 0")
    try:
        return Study(args).make()
    except KeyboardInterrupt:
        print("Interrupted; finished runs are saved. The same command goes on.", file=sys.stderr)
        return 130
    except (TrainingError, OSError, BrokenProcessPool) as error:
        go_on = "finished runs are saved: make room, give fewer --jobs or another --out, and go on"
        remedy = "" if isinstance(error, TrainingError) else f"; {go_on}"
        print(f"study: error: {error}{remedy}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    import study  # processes know this file's functions by this name

    sys.exit(study.main())
