"""The step benchmark: shapes are the networks', ratios are taken within a round, output is read."""

import json
import math

import pytest
import torch

from bench import scaling, step
from bench.shapes import MODELS
from lhkernels.cli import main


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

    def fake_timed(opt, device):
        name = step.BASELINE if opt.defaults["fused"] else "torch loop"
        calls.append(name)
        drift = 1 + len(calls)  # a machine that slows down all the time
        return seconds[name] * (drift - drift % 2)

    monkeypatch.setattr(step, "timed", fake_timed)
    rows = step.compare(
        "tiny",
        [(4, 3), (5,)],
        [step.BASELINE, "torch loop"],
        device=torch.device("cpu"),
        dtype=torch.float32,
        seconds=1e-9,
        copy_rate=1.0,
    )
    assert [(r.contender, r.ratio) for r in rows] == [(step.BASELINE, 1.0), ("torch loop", 1.5)]
    assert calls[4:8] == [step.BASELINE, "torch loop"] * 2  # in alternation, after the warm-up
    assert rows[0].rounds == 7
    assert rows[0].elements == 17
    assert rows[0].gb_per_s == pytest.approx(20 * 17 / (rows[0].ms / 1e3) / 1e9)


def test_command_prints_a_table_and_json(monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "vgg13", lambda: [(8, 3, 3, 3), (10, 8)])
    names = "torch fused;lhkernels reference"
    argv = ["bench", "step", "--models", "vgg13", "--contenders", names, "--seconds", "0.01"]
    monkeypatch.setattr(step, "measure_copy", lambda device: 10.0)
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "vgg13: 0.0 M in 2 tensors, float32" in text
    assert max(map(len, text.splitlines())) <= 80
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["contender"] for row in report["results"]] == names.split(";")
    assert report["environment"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--models", "vgg14"], "vgg14"),
        (["--contenders", "adam"], "adam"),
        (["--seconds", "0"], "--seconds 0"),
        (["--device", "cuda"], "CUDA"),
    ],
)
def test_bad_options(options, word, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "step", *options]) == 2
    assert word in capsys.readouterr().err


def test_scaling_takes_the_median_of_passes():
    def row(x, ms, product=None):
        return {"kind": "hvp-batch", "x": x, "contender": "ours", "ms": ms, "ms_product": product}

    passes = [
        [row(1, 5.0, 2.0), row(2, 9.0)],
        [row(1, 900.0, 3.0), row(2, 8.0)],
        [row(1, 6.0, 4.0)],
    ]
    assert scaling.merged(passes) == [row(1, 6.0, 3.0), row(2, 8.5)]


@pytest.mark.parametrize("slope", [0.0, 0.7, 2.0])
def test_fitted_slopes_are_those_of_the_upper_end(slope):
    xs = [1.0, 10.0, 100.0, 1000.0, 10000.0]
    ys = [7.0, 7.0, *(3 * x**slope for x in xs[2:])]
    law = scaling.fit(xs, ys)
    assert law.slope == pytest.approx(slope, abs=1e-12)
    assert (law.start, law.end, law.at(50.0)) == (100, 10000, pytest.approx(3 * 50.0**slope))
    assert scaling.fit([1.0], [2.0]) is None
