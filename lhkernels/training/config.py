"""The options of a training run, validated once, and every default in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lhkernels.hyperparameters import SCALE_REFERENCES
from lhkernels.training.errors import ConfigError
from lhkernels.training.models import LAYOUTS

OPTIMIZERS = ("sgd", "sa-sgd", "lars")
MODELS = tuple(LAYOUTS)
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class DataDefaults:
    """What a data set is trained with when the user does not say.

    ``flip`` is the probability of a left-right flip (none for digits: a mirrored digit is no
    digit), ``rotate`` the largest angle in degrees; ``lr`` is for ``scale_reference="output"``.
    """

    model: str
    epochs: int
    batch_size: int
    flip: float
    rotate: float
    lr: Mapping[str, float]


# Learning rates. CIFAR: the paper's (its section 4). digits and Fashion-MNIST: of one grid for SGD
# and SA-SGD those with the lowest mean loss on held-out training images, seeds 100 to 104, by
# bench/study.py; digits at these defaults, Fashion-MNIST at 5 epochs of 6000 images of 14x14.
# LARS is not in the paper, and its rates are not tuned by this rule.
DEFAULTS: Mapping[str, DataDefaults] = {
    "digits": DataDefaults(
        "vgg-small", 20, 64, 0.0, 10.0, {"sgd": 0.03, "sa-sgd": 0.03, "lars": 3.0}
    ),
    "fashion-mnist": DataDefaults(
        "vgg-small", 30, 128, 0.5, 5.0, {"sgd": 0.03, "sa-sgd": 0.01, "lars": 3.0}
    ),
    "cifar10": DataDefaults(
        "vgg13", 300, 128, 0.5, 10.0, {"sgd": 0.1, "sa-sgd": 0.005, "lars": 3.0}
    ),
    "cifar100": DataDefaults(
        "vgg13", 300, 128, 0.5, 10.0, {"sgd": 0.1, "sa-sgd": 0.1, "lars": 3.0}
    ),
}
DATA = tuple(DEFAULTS)


class RunKey(NamedTuple):
    """One of the runs of a ``TrainConfig``."""

    init_scale: float
    seed: int
    optimizer: str


FROM_DATA: Any = None  # replaced by the data set's default


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the numbers of a run (where its files go does not).

    ``FROM_DATA`` is replaced by the data set's default (``DEFAULTS``). ``lr`` may be given as one
    number for all optimizers, or as a mapping that names some of them; it is stored as a mapping
    that names all. ``init_scale`` may be several: runs each. ``validation`` images, the last of the
    training set, are held out of training and take the test images' place wherever training is
    steered by them.
    """

    data: str = "digits"
    data_dir: str | None = None
    model: str = FROM_DATA
    width: float = 1.0
    depth: int = 1
    optimizers: tuple[str, ...] = ("sgd", "sa-sgd")
    lr: Mapping[str, float] = FROM_DATA
    scale_reference: str = "output"
    momentum: float = 0.9
    weight_decay: float = 0.005
    patience: int = 10
    lr_factor: float = 0.5
    seeds: tuple[int, ...] = (0,)
    epochs: int = FROM_DATA
    batch_size: int = FROM_DATA
    init_scale: float | tuple[float, ...] = 1.0
    flip: float = FROM_DATA
    rotate: float = FROM_DATA
    limit: int | None = None
    validation: int = 0
    shrink: int = 1
    device: str = "auto"
    amp: bool = False

    def __post_init__(self) -> None:
        _one_of("data", self.data, DATA)
        for name in ("model", "epochs", "batch_size", "flip", "rotate"):
            if getattr(self, name) is FROM_DATA:
                object.__setattr__(self, name, getattr(DEFAULTS[self.data], name))
        object.__setattr__(self, "optimizers", tuple(self.optimizers))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if isinstance(self.init_scale, (list, tuple)):
            several = tuple(self.init_scale)
            object.__setattr__(self, "init_scale", several[0] if len(several) == 1 else several)
        self._check()
        object.__setattr__(self, "lr", self._resolve_lr())

    def _check(self) -> None:
        _one_of("model", self.model, MODELS)
        _one_of("scale_reference", self.scale_reference, SCALE_REFERENCES)
        _one_of("device", self.device, DEVICES)
        _distinct("optimizers", self.optimizers)
        for optimizer in self.optimizers:
            _one_of("optimizers", optimizer, OPTIMIZERS)
        _distinct("seeds", self.seeds)
        for seed in self.seeds:
            _integer("seeds", seed, 0, 2**31 - 1)
        _integer("epochs", self.epochs, 1, 10**6)
        # Batch normalisation has no variance to divide by in a batch of one.
        _integer("batch_size", self.batch_size, 2)
        _integer("patience", self.patience, 0)
        if self.limit is not None:
            _integer("limit", self.limit, 2)
        _integer("validation", self.validation, 0)
        _integer("shrink", self.shrink, 1, 8)  # the smallest images, digits, are 8x8
        _integer("depth", self.depth, 1, 64)
        _number("width", self.width, above=0, most=64)
        # Far beyond these float32 has no squared norm for the weights but 0 or infinity.
        _distinct("init_scale", self.init_scales)
        for scale in self.init_scales:
            _number("init_scale", scale, least=1e-6, most=1e6)
        _number("momentum", self.momentum, least=0, below=1)
        _number("weight_decay", self.weight_decay, least=0)
        _number("lr_factor", self.lr_factor, above=0, below=1)
        _number("flip", self.flip, least=0, most=1)
        _number("rotate", self.rotate, least=0, most=180)

    def _resolve_lr(self) -> dict[str, float]:
        """One learning rate for each of the optimizers, in their order."""
        given: Any = self.lr
        if given is FROM_DATA:
            given = {}
        elif not isinstance(given, Mapping):
            given = dict.fromkeys(self.optimizers, given)
        for optimizer, value in given.items():
            if optimizer not in self.optimizers:
                raise ConfigError(
                    "lr", f"{optimizer}={value}", f"name one of {', '.join(self.optimizers)}"
                )
            _number("lr", value, least=0)
        defaults = dict(DEFAULTS[self.data].lr)
        if self.scale_reference == "initial":
            # The scales then start with a geometric mean of one: SGD's learning rate carries over.
            defaults["sa-sgd"] = defaults["sgd"]
        return {name: float(given.get(name, defaults[name])) for name in self.optimizers}

    @property
    def init_scales(self) -> tuple[float, ...]:
        return self.init_scale if isinstance(self.init_scale, tuple) else (self.init_scale,)

    def run_keys(self) -> list[RunKey]:
        """Every run, in the order in which they are trained and reported."""
        return [
            RunKey(scale, seed, optimizer)
            for scale in self.init_scales
            for seed in self.seeds
            for optimizer in self.optimizers
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, ``TrainConfig(**config.to_dict()) == config``."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def parse_lr(text: str) -> float | dict[str, float]:
    """``"0.1"`` -> 0.1, ``"sgd=0.1,sa-sgd=0.005"`` -> {"sgd": 0.1, "sa-sgd": 0.005}."""
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.split("=") for part in text.split(",")]
        rates = {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(
            "lr", text, "give one number, or one for each optimizer: sgd=0.1,sa-sgd=0.005"
        ) from None
    if len(rates) < len(pairs):
        raise ConfigError("lr", text, "name each optimizer only once")
    return rates


def parse_optimizers(text: str) -> tuple[str, ...]:
    """``"sgd,sa-sgd"`` -> ("sgd", "sa-sgd")."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ConfigError(
            "optimizers", text, f"has an empty name; give some of {','.join(OPTIMIZERS)}"
        )
    return names


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"0,1,2"`` -> (0, 1, 2)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError("seeds", text, "give whole numbers: 0,1,2") from None


def parse_init_scale(text: str) -> float | tuple[float, ...]:
    """``"10"`` -> 10.0, ``"0.1,1,10"`` -> (0.1, 1.0, 10.0)."""
    try:
        scales = tuple(float(part) for part in text.split(","))
        return scales[0] if len(scales) == 1 else scales
    except ValueError:
        raise ConfigError("init_scale", text, "give numbers: 0.1,1,10") from None


def _one_of(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(field, value, f"choose from {', '.join(choices)}")


def _distinct(field: str, values: tuple[object, ...]) -> None:
    listed = ",".join(map(str, values))
    if not values:
        raise ConfigError(field, "(empty)", "name at least one")
    if len(set(values)) < len(values):
        raise ConfigError(field, listed, "name each one only once")


def _integer(field: str, value: Any, least: int, most: int | None = None) -> None:
    valid = isinstance(value, int) and not isinstance(value, bool)
    if not valid or value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise ConfigError(field, value, f"must be a whole number, at least {least}{upper}")


def _number(
    field: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> None:
    valid = isinstance(value, (int, float)) and not isinstance(value, bool)
    if valid and math.isfinite(value) and above < value < below and least <= value <= most:
        return
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (
            ("above", above), ("at least", least), ("below", below), ("at most", most),
        )
        if math.isfinite(bound)
    ]  # fmt: skip
    raise ConfigError(field, value, f"must be a finite number, {' and '.join(bounds)}")
