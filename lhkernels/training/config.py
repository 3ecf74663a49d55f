"""The options of a training run: default, range and description of each in one place."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from lhkernels.hyperparameters import SCALE_REFERENCES
from lhkernels.training.errors import ConfigError, shown
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


def _rates(*rates: float) -> dict[str, float]:
    return dict(zip(OPTIMIZERS, rates, strict=True))


# Learning rates. CIFAR: the paper's (its section 4). digits and Fashion-MNIST: of one grid for SGD
# and SA-SGD those with the lowest mean loss on held-out training images, seeds 100 to 104, by
# bench/study.py; digits at these defaults, Fashion-MNIST at 5 epochs of 6000 images of 14x14.
# LARS is not in the paper, and its rates are not tuned by this rule.
DEFAULTS: Mapping[str, DataDefaults] = {
    "digits": DataDefaults("vgg-small", 20, 64, 0.0, 10.0, _rates(0.03, 0.03, 3.0)),
    "fashion-mnist": DataDefaults("vgg-small", 30, 128, 0.5, 5.0, _rates(0.03, 0.01, 3.0)),
    "cifar10": DataDefaults("vgg13", 300, 128, 0.5, 10.0, _rates(0.1, 0.005, 3.0)),
    "cifar100": DataDefaults("vgg13", 300, 128, 0.5, 10.0, _rates(0.1, 0.1, 3.0)),
}
DATA = tuple(DEFAULTS)

KINDS = {int: "a whole number", float: "a finite number"}
BOUNDS = {
    "above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le,
}  # fmt: skip
GROUPS = WHAT, HOW, WHERE = "data and model", "training", "run"


@dataclass(frozen=True)
class Option:
    """What a field of ``TrainConfig`` may be, and how the command line describes it.

    ``rule`` has the choices, or bounds as they are told: "at least 0 and below 1". Kind and rule
    are those of each value where ``several`` may be given.
    """

    kind: type
    default: Any
    rule: tuple[str, ...] | str
    group: str
    metavar: str | None
    text: str = ""
    several: bool = False

    @property
    def help(self) -> str:
        """The text, or else the choices, and the default."""
        text = self.text or ", ".join(self.rule if isinstance(self.rule, tuple) else ())
        if self.default in (None, False):
            return text
        return f"{text} (default: {shown(self.default)})".strip()

    def check(self, name: str, value: Any) -> None:
        """Raise a ConfigError for a value, or one of several, that breaks the rule."""
        if isinstance(self.rule, tuple):
            if self.rule and value not in self.rule:
                raise ConfigError(name, value, f"choose from {', '.join(self.rule)}")
            return
        bounds = (bound.rsplit(" ", 1) for bound in self.rule.split(" and "))
        valid = isinstance(value, (int, self.kind)) and not isinstance(value, bool)
        if not (
            valid
            and math.isfinite(value)
            and all(BOUNDS[words](value, float(bound)) for words, bound in bounds)
        ):
            raise ConfigError(name, value, f"must be {KINDS[self.kind]}, {self.rule}")

    def check_all(self, name: str, given: Any) -> tuple[Any, ...]:
        """The values as a tuple, one value too."""
        single = isinstance(given, str) or not isinstance(given, Iterable)
        values = (given,) if single else tuple(given)
        if not values:
            raise ConfigError(name, "", "name at least one")
        if len(set(values)) < len(values):
            raise ConfigError(name, values, "name each one only once")
        for value in values:
            self.check(name, value)
        return values


def option(kind: type, default: Any, *rest: Any, **named: Any) -> Any:
    """A field of ``TrainConfig`` with its ``Option``."""
    known = Option(kind, default, *rest, **named)
    return field(default=default, metadata={"option": known})


choice, whole, number = (partial(option, kind) for kind in (str, int, float))


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

    data: str = choice("digits", DATA, WHAT, "NAME")
    data_dir: str | None = choice(
        None, (), WHAT, "DIR",
        "folder of the data set's files (default: $LHKERNELS_DATA; nothing is downloaded)",
    )  # fmt: skip
    model: str = choice(FROM_DATA, MODELS, WHAT, "NAME")
    width: float = number(1.0, "above 0 and at most 64", WHAT, "X", "multiplies channel numbers")
    depth: int = whole(1, "at least 1 and at most 64", WHAT, "N", "N convolutions in place of each")
    optimizers: tuple[str, ...] = choice(
        ("sgd", "sa-sgd"), OPTIMIZERS, HOW, "A,B",
        f"some of {', '.join(OPTIMIZERS)} (it needs pytorch_optimizer)", several=True,
    )  # fmt: skip
    lr: Mapping[str, float] = number(
        FROM_DATA, "at least 0", HOW, "LR",
        "one number, or one for each optimizer: sgd=0.1,sa-sgd=0.005", several=True,
    )  # fmt: skip
    scale_reference: str = choice(
        "output", SCALE_REFERENCES, HOW, "REF",
        "output: sa-sgd's scales count from the network's output; initial: they start with a "
        "geometric mean of one",
    )  # fmt: skip
    momentum: float = number(0.9, "at least 0 and below 1", HOW, "M")
    weight_decay: float = number(0.005, "at least 0", HOW, "D")
    patience: int = whole(10, "at least 0", HOW, "N", "epochs without a lower test error")
    lr_factor: float = number(0.5, "above 0 and below 1", HOW, "F", "then lr is multiplied by F")
    seeds: tuple[int, ...] = whole(
        (0,), "at least 0 and at most 2147483647", HOW, "0,1,2",
        "whole numbers: 0,1,2, a run each", several=True,
    )  # fmt: skip
    epochs: int = whole(
        FROM_DATA, "at least 1 and at most 1000000", HOW, "N", "epochs of each optimizer"
    )
    # Batch normalisation has no variance to divide by in a batch of one.
    batch_size: int = whole(FROM_DATA, "at least 2", HOW, "N", "images in a batch")
    # Far beyond these float32 has no squared norm for the weights but 0 or infinity.
    init_scale: float | tuple[float, ...] = number(
        1.0, "at least 1e-06 and at most 1e+06", WHAT, "C",
        "numbers: 0.1,1,10, a run each, that multiply every initial weight followed by batch "
        "normalisation (1e-6 to 1e6)", several=True,
    )  # fmt: skip
    flip: float = number(
        FROM_DATA, "at least 0 and at most 1", WHAT, "P", "probability of a left-right flip"
    )
    rotate: float = number(FROM_DATA, "at least 0 and at most 180", WHAT, "DEG", "largest rotation")
    limit: int | None = whole(None, "at least 2", WHAT, "N", "only the first N training images")
    validation: int = whole(
        0, "at least 0", WHAT, "N",
        "hold out the last N training images; the schedule then watches their error",
    )  # fmt: skip
    # The smallest images, digits, are 8x8.
    shrink: int = whole(1, "at least 1 and at most 8", WHAT, "K", "average each KxK pixels")
    device: str = choice("auto", DEVICES, WHERE, "DEV")
    amp: bool = option(
        bool, False, (), WHERE, None,
        "mixed precision: float16 with loss scaling on CUDA, bfloat16 on the CPU",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, known in OPTIONS.items():
            value = getattr(self, name)
            if name == "lr":
                value = self._resolve_lr(value)
            elif known.several:
                value = known.check_all(name, value)
            else:
                if value is None:
                    value = getattr(DEFAULTS[self.data], name, known.default)
                if value is not None:
                    known.check(name, value)
            object.__setattr__(self, name, value)
        if len(self.init_scales) == 1:
            object.__setattr__(self, "init_scale", self.init_scales[0])

    def _resolve_lr(self, given: Any) -> dict[str, float]:
        """One learning rate for each of the optimizers, in their order."""
        if given is FROM_DATA:
            given = {}
        elif not isinstance(given, Mapping):
            given = dict.fromkeys(self.optimizers, given)
        for optimizer, value in given.items():
            if optimizer not in self.optimizers:
                wrong = f"{optimizer}={value}"
                raise ConfigError("lr", wrong, f"name one of {', '.join(self.optimizers)}")
            OPTIONS["lr"].check("lr", value)
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
        return [RunKey(*k) for k in product(self.init_scales, self.seeds, self.optimizers)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, ``TrainConfig(**config.to_dict()) == config``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


OPTIONS: Mapping[str, Option] = {f.name: f.metadata["option"] for f in fields(TrainConfig)}


def parse(name: str, text: str) -> Any:
    """What ``text`` says for an option that may have several values.

    ``"0,1"`` for seeds -> (0, 1), ``"10"`` for init_scale -> 10.0, and for lr
    ``"sgd=0.1,sa-sgd=0.005"`` -> {"sgd": 0.1, "sa-sgd": 0.005}.
    """
    known = OPTIONS[name]
    parts = [part.strip() for part in text.split(",")]
    try:
        if name == "lr" and (len(parts) > 1 or "=" in text):
            pairs = [part.split("=") for part in parts]
            rates = {optimizer.strip(): float(value) for optimizer, value in pairs}
        elif all(parts):
            values = tuple(map(known.kind, parts))
            return values[0] if known.kind is float and len(values) == 1 else values
        else:
            raise ValueError
    except ValueError:
        raise ConfigError(name, text, f"give {known.text}") from None
    if len(rates) < len(pairs):
        raise ConfigError(name, text, "name each optimizer only once")
    return rates
