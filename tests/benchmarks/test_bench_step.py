"""``bench step``: shapes are the networks', ratios are taken within a round, traffic is counted."""

import json
import math
from argparse import Namespace

import pytest
import torch

from bench import step
from bench.shapes import MODELS
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
    shapes = MODELS[model]()
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


@pytest.mark.parametrize(
    ("contender", "accesses"),
    [
        ("torch fused", 5),
        ("torch foreach", 11),  # decay: 2 reads, 1 write; momentum: 1, 1 and 2, 1; weights: 2, 1
        ("torch loop", 11),
        ("lhkernels reference", 16),  # the square: 1, 1; its sum: 1; amending: 1, 1
    ],
)
def test_traffic_is_what_operations_name(contender, accesses):
    params = [torch.nn.Parameter(torch.randn(256, 16))]
    params[0].grad = torch.randn(256, 16)
    opt = step.contenders()[contender](params)
    opt.step()
    assert step.bytes_per_element(opt) == pytest.approx(4 * accesses, rel=1e-2)


def test_command_prints_a_table_and_json(monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "vgg13", lambda: [(8, 3, 3, 3), (10, 8)])
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
