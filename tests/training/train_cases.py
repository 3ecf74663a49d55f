"""What the tests of side-by-side training share: a tiny run, its files, a spy."""

import json

import torch

from lhkernels.training import Observer, TrainConfig


def small(**options):
    """A run of a few milliseconds an epoch."""
    return TrainConfig(**{"limit": 160, "batch_size": 32, "width": 0.25, "epochs": 2, **options})


def metrics(out, seconds=False):
    """The records of a run, as far as they can be repeated."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if seconds or k != "seconds"} for r in records]


def checkpoint(out, optimizer, seed=0, scale=""):
    file = out / "checkpoints" / f"{optimizer}-seed{seed}{scale}.pt"
    return torch.load(file, weights_only=True)


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
