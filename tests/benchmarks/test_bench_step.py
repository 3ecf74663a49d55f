"""``bench step``: shapes are the networks', ratios are taken within a round, traffic is counted."""

import json
import math
from argparse import Namespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import step
from lhkernels.cli import main

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "tensors", "elements"),
    [  # parameters of torchvision's, timm's and transformers' models
        ("vgg13", 11, 9_407_168),
        ("resnet50", 161, 25_557_032),
        ("vit-b16", 152, 86_567_656),
        ("gpt2-small", 148, 124_439_808),
        ("transformer-1b", 201, 1_100_048_384),
        ("transformer-7b", 291, 6_738_415_616),
    ],
)
def test_shapes_are_the_networks(model, tensors, elements):
    shapes = step.MODELS[model]
    assert (len(shapes), sum(map(math.prod, shapes))) == (tensors, elements)


def test_compare_takes_ratios_within_a_round(monkeypatch):
    seconds = {step.BASELINE: 2.0, "torch loop": 3.0}
    calls = []

    def fake_timed(call, device):
        name = step.BASELINE if call.__self__.defaults["fused"] else "torch loop"
        calls.append(name)
        drift = 1 + len(calls)  # a machine that slows down all the time
        return seconds[name] * (drift - drift % 2)

    monkeypatch.setattr(step, "timed", fake_timed)
    args = Namespace(device=CPU, seconds=1e-9)
    rows = step.compare(args, [(4, 3), (5,)], [step.BASELINE, "torch loop"])
    assert [(r["contender"], r["ratio"]) for r in rows] == [(step.BASELINE, 1), ("torch loop", 1.5)]
    assert calls[4:8] == [step.BASELINE, "torch loop"] * 2  # in alternation, after the warm-up
    assert rows[0]["rounds"] == 7
    assert rows[0]["elements"] == 17
    assert rows[0]["gb_per_s"] == pytest.approx(20 * 17 / (rows[0]["ms"] / 1e3) / 1e9)


class Traffic(TorchDispatchMode):
    """Sums the bytes of operands read and of results written inside; caches are not modelled."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not func.is_view and "empty" not in name:  # metadata
            written = args[0] if func._schema.is_mutable else out
            read = (args[1:] if name.endswith(("copy_", "zero_", "fill_")) else args, kwargs)
            tensors = [t for t in tree_leaves((written, read)) if isinstance(t, torch.Tensor)]
            self.total += sum(t.nbytes for t in tensors)
        return out


@pytest.mark.parametrize("contender", step.contenders())
def test_traffic_is_what_operations_name(contender):
    _, accesses, make = step.contenders()[contender]
    if accesses == step.ONE_PASS:
        pytest.skip("one operation, which names more than it touches")
    params = [torch.nn.Parameter(torch.randn(256, 16))]
    params[0].grad = torch.randn(256, 16)
    opt = make(params)
    opt.step()
    with Traffic() as traffic:
        opt.step()
    assert traffic.total / params[0].nbytes == pytest.approx(accesses, rel=1e-2)


def test_command_prints_a_table_and_json(monkeypatch, capsys):
    monkeypatch.setitem(step.MODELS, "vgg13", [(8, 3, 3, 3), (10, 8)])
    names = "torch fused;lhkernels reference"
    argv = ["bench", "step", "--models", "vgg13", "--contenders", names, "--seconds", "0.01"]
    argv += ["--device", "cpu"]
    monkeypatch.setattr(step, "measure_copy", lambda device: 10.0)
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "vgg13: 0.0 M in 2 tensors, float32" in text
    assert max(map(len, text.splitlines())) <= 80
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["contender"] for row in report["results"]] == names.split(";")
    assert report["environment"]["torch"] == torch.__version__
