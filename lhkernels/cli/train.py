"""``lhkernels train``: train image classifiers by several optimizers side by side."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from lhkernels.cli.errors import CommandError
from lhkernels.training.config import DATA, DEFAULTS, GROUPS, OPTIONS, TrainConfig, parse
from lhkernels.training.errors import TrainingError, option_name
from lhkernels.training.folder import RunFolder, strict_json
from lhkernels.training.trainer import resumed_config, train

DESCRIPTION = """\
Train the same network on the same batches by several optimizers, an epoch of each in turn.

The defaults are the set-up of Zhang, Chen and Liu (NeurIPS 2018, section 4): a VGG net with only
the last fully connected layer, no biases, batch normalisation without parameters before each
activation, momentum 0.9, weight decay 0.005, the learning rate halved when the test error has not
fallen for 10 epochs, random flips (not for digits) and small rotations of the training images.
"""

EPILOG = """\
defaults by data set:
                 model      epochs  batch  flip  rotate  lr: sgd, sa-sgd, lars
{defaults}
  With --scale-reference initial, sa-sgd's default learning rate is sgd's. The rates of cifar10 and
  cifar100 are the paper's; those of digits and fashion-mnist had the lowest loss on held-out
  training images, mean of five seeds (bench/study.py); those of lars are not tuned.

written to --out:
  metrics.jsonl  a line per initial scale, seed, epoch and optimizer: train_loss (mean over the
                 epoch's batches as they were trained on), test_loss, test_error (a fraction), lr,
                 seconds (training alone, without evaluation)
  report.json    options, machine, final and best figures of each run; status ok, diverged (a loss
                 that is not finite; the other optimizers go on) or interrupted
  curves.png     train loss and test error against the epoch, or against the initial scale
  checkpoints/   weights, optimizer and schedule after the last finished epoch

The learning rate schedule watches the test error, so test errors are a little too good, that of
the best epoch above all. For comparisons give --validation: metrics.jsonl then has validation_loss
and validation_error too, and the test images decide nothing. Images smaller than a model's poolings
need get a black border: 28x28 becomes 32x32 for vgg11, 13 and 16. An epoch's last, incomplete batch
is left out.

exit status: 0 done, 1 every run diverged, 2 an option or a file is wrong, --out can not be written
or is in use, memory is short or an optimizer can not start, 130 interrupted (nothing is lost but
the running epoch; --resume --out DIR goes on).
"""


def add_parser(subparsers: Any) -> None:
    """Register the command; the options of a training are the fields of ``TrainConfig``."""
    parser = subparsers.add_parser(
        "train",
        help="train a network by several optimizers side by side",
        description=DESCRIPTION,
        epilog=EPILOG.format(defaults=_defaults_table()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Options that are not given stay unset: TrainConfig has the defaults, and a resumed run
        # has those that it was started with.
        argument_default=argparse.SUPPRESS,
    )
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, option in OPTIONS.items():
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if option.kind is not bool:
            how = {"metavar": option.metavar, "type": str if option.several else option.kind}
        groups[option.group].add_argument(option_name(name), help=option.help, **how)
    group = groups["run"]
    group.add_argument("--out", metavar="DIR", help="(default: runs/DATA-MODEL)")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run in --out, with its options; --epochs may grow",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    group.add_argument("--json", action="store_true", help="print report.json's content on stdout")
    group.add_argument("--no-progress", action="store_true", help="print the final table only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train as ``args`` say; the exit status."""
    from rich.console import Console

    from lhkernels.cli.train_display import Display

    given = vars(args)
    resume, as_json = "resume" in given, given.get("json", False)
    console = Console(stderr=as_json)
    out = output_folder(given)
    try:
        config = read_config(given, out, resume)
        report = train(
            config,
            out,
            resume=resume,
            overwrite="overwrite" in given,
            observer=Display(console, progress="no_progress" not in given),
        )
    except TrainingError as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        print(interruption_message(out), file=sys.stderr)
        return 130
    if as_json:
        print(strict_json(report, indent=2))
    console.print(f"written to {out}", highlight=False, markup=False, soft_wrap=True)
    return 1 if all(run["status"] == "diverged" for run in report["runs"]) else 0


def interruption_message(out: Path) -> str:
    """What is saved, and how to go on."""
    if not RunFolder(out).holds_run():
        return "Interrupted before the training began; nothing was written."
    return (
        "Interrupted; all finished epochs are saved. To go on:\n"
        f"  python -m lhkernels train --resume --out {shlex.quote(str(out))}"
    )


def output_folder(given: dict[str, Any]) -> Path:
    """--out, or runs/DATA-MODEL."""
    data = given.get("data", DATA[0])
    model = given.get("model") or (DEFAULTS[data].model if data in DEFAULTS else "")
    return Path(given.get("out") or f"runs/{data}-{model}")


def read_config(given: dict[str, Any], out: Path, resume: bool) -> TrainConfig:
    """The options that were given, over the defaults or over those of the run to resume."""
    options = {
        name: parse(name, given[name]) if option.several else given[name]
        for name, option in OPTIONS.items()
        if name in given
    }
    return resumed_config(RunFolder(out), options) if resume else TrainConfig(**options)


def _defaults_table() -> str:
    """The defaults of each data set, a line each."""
    return "\n".join(
        f"  {name:14} {d.model:10} {d.epochs:6} {d.batch_size:6} {d.flip:5g} {d.rotate:7g}  "
        + ", ".join(f"{lr:g}" for lr in d.lr.values())
        for name, d in DEFAULTS.items()
    )
