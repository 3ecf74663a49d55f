"""Options: defaults, the errors that bad values give, and their way through JSON."""

import json
import math

import pytest

from lhkernels.training.config import DEFAULTS, TrainConfig, parse
from lhkernels.training.errors import ConfigError


@pytest.mark.parametrize("data", DEFAULTS)
def test_defaults_of_the_data_set_fill_in(data):
    config, defaults = TrainConfig(data=data), DEFAULTS[data]
    for name in ("model", "epochs", "batch_size", "flip", "rotate"):
        assert getattr(config, name) == getattr(defaults, name)
    assert config.lr == {name: defaults.lr[name] for name in ("sgd", "sa-sgd")}
    assert TrainConfig(data=data, flip=0, rotate=0).flip == 0


def test_the_papers_set_up():
    config = TrainConfig(data="cifar10")
    assert config.lr == {"sgd": 0.1, "sa-sgd": 0.005}
    assert TrainConfig(data="cifar100").lr == {"sgd": 0.1, "sa-sgd": 0.1}
    assert (config.model, config.epochs) == ("vgg13", 300)
    assert (config.momentum, config.weight_decay) == (0.9, 0.005)
    assert (config.patience, config.lr_factor) == (10, 0.5)


def test_learning_rates():
    assert TrainConfig(lr=0.5).lr == {"sgd": 0.5, "sa-sgd": 0.5}
    default = DEFAULTS["digits"].lr
    assert TrainConfig(lr={"sa-sgd": 2}).lr == {"sgd": default["sgd"], "sa-sgd": 2.0}
    relative = TrainConfig(data="cifar10", scale_reference="initial").lr
    assert relative == {"sgd": 0.1, "sa-sgd": 0.1}


def test_json_round_trip():
    config = TrainConfig(data="cifar100", seeds=(3, 1), lr={"sgd": 0.2}, amp=True, limit=100)
    assert TrainConfig(**json.loads(json.dumps(config.to_dict()))) == config
    several = TrainConfig(init_scale=(0.1, 10.0), seeds=(2,), optimizers=("sgd",))
    assert TrainConfig(**json.loads(json.dumps(several.to_dict()))) == several
    assert several.run_keys() == [(0.1, 2, "sgd"), (10.0, 2, "sgd")]
    assert TrainConfig(init_scale=[3.0]).init_scale == 3.0


BAD = [
    ("data", "mnist", "choose from digits, fashion-mnist"),
    ("model", "resnet", "choose from vgg-small"),
    ("optimizers", ("sgd", "adam"), "choose from sgd, sa-sgd, lars"),
    ("optimizers", ("sgd", "sgd"), "only once"),
    ("optimizers", (), "at least one"),
    ("seeds", (0, 0), "only once"),
    ("seeds", (-1,), "at least 0"),
    ("seeds", (2**31,), "at most 2147483647"),
    ("epochs", 0, "at least 1"),
    ("epochs", 1.5, "whole number"),
    ("epochs", True, "whole number"),
    ("batch_size", 1, "at least 2"),
    ("limit", 1, "at least 2"),
    ("validation", -1, "at least 0"),
    ("shrink", 9, "at least 1 and at most 8"),
    ("depth", 65, "at least 1 and at most 64"),
    ("patience", -1, "at least 0"),
    ("lr", -0.1, "at least 0"),
    ("lr", math.nan, "finite"),
    ("lr", {"adam": 0.1}, "name one of sgd, sa-sgd"),
    ("lr", {"sgd": math.inf}, "finite"),
    ("momentum", 1.0, "below 1"),
    ("weight_decay", -1e-3, "at least 0"),
    ("width", 0, "above 0"),
    ("width", 1e9, "above 0 and at most 64"),
    ("init_scale", 0.0, "at least 1e-06"),
    ("init_scale", 1e-200, "at least 1e-06 and at most 1e.06"),
    ("init_scale", 1e7, "at most 1e.06"),
    ("init_scale", (1.0, 1.0), "only once"),
    ("init_scale", (), "at least one"),
    ("init_scale", (1.0, 0.0), "at least 1e-06"),
    ("lr_factor", 1.0, "below 1"),
    ("flip", 1.01, "at most 1"),
    ("rotate", -1, "at least 0"),
    ("device", "tpu", "choose from auto"),
    ("scale_reference", "input", "choose from output"),
]


@pytest.mark.parametrize(("field", "value", "remedy"), BAD)
def test_bad_value_names_option_value_and_remedy(field, value, remedy):
    with pytest.raises(ConfigError, match=remedy) as caught:
        TrainConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith("--" + field.replace("_", "-") + " ")
    shown = value.popitem() if isinstance(value, dict) else value
    parts = shown if isinstance(shown, tuple) else (shown,)
    assert not parts or str(parts[-1]) in message


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "0.1", 0.1),
        ("lr", "sgd=0.1, sa-sgd=5e-3", {"sgd": 0.1, "sa-sgd": 0.005}),
        ("seeds", "0,1,12", (0, 1, 12)),
        ("seeds", "3", (3,)),
        ("init_scale", "10", 10.0),
        ("init_scale", "0.1, 1", (0.1, 1.0)),
        ("optimizers", "sgd, lars", ("sgd", "lars")),
    ],
)
def test_texts_are_parsed(name, text, value):
    assert parse(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("init_scale", "1,x", "--init-scale 1,x: give numbers: 0.1,1,10"),
        ("seeds", "0,x", "--seeds 0,x: give whole numbers: 0,1,2"),
        ("lr", "fast", "--lr fast: give one number, or one for each optimizer"),
        ("lr", "sgd=", "--lr sgd=: give one number, or one for each optimizer"),
        ("lr", "sgd=0.1,0.2", "--lr sgd=0.1,0.2: give one number, or one for each optimizer"),
        ("lr", "0.1,0.2", "--lr 0.1,0.2: give one number, or one for each optimizer"),
        ("lr", "sgd=0.1, sgd=0.2", "--lr sgd=0.1, sgd=0.2: name each optimizer only once"),
        ("optimizers", "sgd,", "--optimizers sgd,: give some of sgd, sa-sgd, lars"),
        ("optimizers", "", "--optimizers (empty): give some of sgd, sa-sgd, lars"),
        ("optimizers", ",sgd", "--optimizers ,sgd: give some of sgd, sa-sgd, lars"),
    ],
)
def test_texts_that_can_not_be_parsed_name_the_remedy(name, text, message):
    with pytest.raises(ConfigError) as caught:
        parse(name, text)
    assert str(caught.value).startswith(message)
