"""One network, one optimizer: an epoch of training and evaluation at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lhkernels as lh
from lhkernels.training.config import RunKey, TrainConfig
from lhkernels.training.data import ImageData, batches, random_stream
from lhkernels.training.errors import ConfigError, TrainingError
from lhkernels.training.models import VGG, initialise

EVALUATION_BATCH = 500
# Reading the loss makes a GPU wait; on a CPU it costs nothing.
STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 16}
STATEFUL = ("model", "optimizer", "scheduler", "scaler")

Record = dict[str, Any]
BatchCallback = Callable[[int, float], None]


class Run:
    """The training of one network by one optimizer from one seed.

    ``history`` has a record an epoch: init_scale, seed, optimizer, epoch (from 1),
    train_loss (mean over the epoch's batches as they were trained on), test_loss, test_error (a
    fraction), lr (the epoch's), seconds (training alone), and with held-out images validation_loss
    and validation_error. A loss that is not finite is None, and ends the run as diverged.
    """

    def __init__(
        self, config: TrainConfig, key: RunKey, data: ImageData, device: torch.device
    ) -> None:
        self.key, self.seed, self.name = key, key.seed, key.optimizer
        self.config, self.data, self.device = config, data, device
        self.model = build_model(config, data, key.seed, key.init_scale).to(device)
        self.optimizer = build_optimizer(key.optimizer, self.model, config)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=config.lr_factor, patience=config.patience
        )
        # float16 gradients need scaling; bfloat16 (CPU) has float32's range.
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.amp and device.type == "cuda")
        self.history: list[Record] = []
        self.has_trained = False  # an epoch, since this object was made

    def run_epoch(
        self, on_batch: BatchCallback = lambda step, loss: None, *, test: bool = True
    ) -> Record:
        """Train an epoch, evaluate, let the schedule look at the error; the new record.

        The schedule's error is that of the held-out images where there are any, else the test
        error. With held-out images ``test=False`` saves the test: its figures are then None.
        """
        epoch = len(self.history) + 1
        lr = float(self.optimizer.param_groups[0]["lr"])
        start = time.perf_counter()
        train_loss = self._train(epoch, on_batch)
        seconds = time.perf_counter() - start
        record: Record = {
            **self.key._asdict(), "epoch": epoch, "train_loss": None, "test_loss": None,
            "test_error": None, "lr": lr, "seconds": round(seconds, 4),
        }  # fmt: skip
        largest = torch.stack([p.detach().abs().max() for p in self.model.parameters()])
        if math.isfinite(train_loss) and bool(largest.isfinite().all()):
            record["train_loss"] = train_loss
            held_out = self.data.validation_labels is not None
            if held_out:
                loss, error = self.validate()
                record |= {"validation_error": error, "validation_loss": loss}
            if test or not held_out:
                record["test_loss"], record["test_error"] = self.evaluate()
            self.scheduler.step(record["validation_error" if held_out else "test_error"])
        self.history.append(record)
        return record

    def _train(self, epoch: int, on_batch: BatchCallback) -> float:
        """Mean loss of the epoch's batches; not finite as soon as it is seen to have diverged."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        step = 0
        for images, labels in batches(self.data, self.config, self.seed, epoch):
            step += 1
            self.optimizer.zero_grad()
            with self._autocast():
                loss = F.cross_entropy(self.model(images).float(), labels)
            total += loss.detach()
            # Before the step, so that no optimizer is given a gradient that is not finite.
            if step % STEPS_BETWEEN_LOOKS[self.device.type] == 0:
                mean = float(total) / step
                if not math.isfinite(mean):
                    return mean
                on_batch(step, mean)
            self.scaler.scale(loss).backward()
            self._step()
        self.has_trained = True
        mean = float(total) / step
        on_batch(step, mean)
        return mean

    def _step(self) -> None:
        """The optimizer's step; an optimizer that refuses to begin has its say without traceback.

        All of a first epoch counts as the beginning: loss scaling leaves out some first steps.
        """
        try:
            self.scaler.step(self.optimizer)
        except (ValueError, RuntimeError) as error:
            if self.has_trained:
                raise
            raise TrainingError(
                f"{self.name} (seed {self.seed}) can not train: {error}; finished epochs are "
                "saved: mend this and use --resume, or give other options and --overwrite"
            ) from error
        self.scaler.update()

    def evaluate(self) -> tuple[float | None, float]:
        """Mean loss and share of wrong answers on the test images, with BN's running statistics."""
        return self._evaluate(*self.data.part("test"))

    def validate(self) -> tuple[float | None, float]:
        """The same for the held-out images."""
        return self._evaluate(*self.data.part("validation"))

    @torch.no_grad()
    def _evaluate(self, all_images: Tensor, all_labels: Tensor) -> tuple[float | None, float]:
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        parts = (part.split(EVALUATION_BATCH) for part in (all_images, all_labels))
        for images, labels in zip(*parts, strict=True):
            with self._autocast():
                logits = self.model(self.data.normalise(images.float())).float()
                loss += F.cross_entropy(logits, labels, reduction="sum")
            wrong += (logits.argmax(dim=1) != labels).sum()
        count = len(all_labels)
        return float(loss) / count if loss.isfinite() else None, int(wrong) / count

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.config.amp)

    @property
    def diverged(self) -> bool:
        return has_diverged(self.history)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on; its random numbers follow from the seed."""
        parts = {part: getattr(self, part).state_dict() for part in STATEFUL}
        return {**parts, "history": self.history, "diverged": self.diverged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in STATEFUL:
            getattr(self, part).load_state_dict(state[part])
        self.history = list(state["history"])


def has_diverged(history: list[Record]) -> bool:
    return bool(history) and history[-1]["train_loss"] is None


def build_model(config: TrainConfig, data: ImageData, seed: int, init_scale: float = 1.0) -> VGG:
    """The network as every optimizer starts from it: drawn on the CPU from the seed alone."""
    channels = data.train_images.shape[1]
    model = VGG(config.model, channels, data.classes, config.width, config.depth)
    initialise(model, random_stream(seed, epoch=0), init_scale)
    return model


def build_optimizer(name: str, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """``sgd``, ``sa-sgd`` or ``lars``, all with the same momentum and weight decay."""
    options: dict[str, Any] = {
        "lr": config.lr[name], "momentum": config.momentum, "weight_decay": config.weight_decay,
    }  # fmt: skip
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), **options)
    if name == "sa-sgd":
        options["scale_reference"] = config.scale_reference
        return lh.ScaleAmendedSGD(model.named_parameters(), **options)
    from pytorch_optimizer import LARS

    return LARS(model.parameters(), **options)


def pick_device(name: str) -> torch.device:
    """``auto`` is the CUDA device if there is one, else the CPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", name, "no CUDA device is available here; use cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_packages(config: TrainConfig) -> None:
    """The packages a run needs on top of torch, asked for before it starts and not at its end."""
    needed = ["matplotlib"] + (["sklearn"] if config.data == "digits" else [])
    for name in needed:
        if find_spec(name) is None:
            raise TrainingError(f"the package {name} is missing: pip install lhkernels[demo]")
    if "lars" in config.optimizers and find_spec("pytorch_optimizer") is None:
        raise ConfigError(
            "optimizers", "lars", "needs another package: pip install pytorch_optimizer"
        )
