"""What the training study runs: SGD beside scale-amended SGD, part by part, cell by cell.

A cell is one setting of one optimizer, with a run for each seed. A part is a mapping of labels to
cells; the runs of two parts that agree are the same run.

figure1           the curves of Zhang, Chen and Liu's Figure 1, with their learning rates and with
                  tuned ones
heatmap           initial scale x learning rate, with the paper's weight decay
heatmap-no-decay  the same without weight decay, where theory says most
width, depth      channels and convolutions x learning rate
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lhkernels.training.config import DEFAULTS, TrainConfig

COMPARED = ("sgd", "sa-sgd")
PARTS = ("figure1", "heatmap", "heatmap-no-decay", "width", "depth")

Cells = dict[tuple[Any, ...], list[TrainConfig]]


@dataclass(frozen=True)
class Preset:
    """Sizes of a study. ``epochs`` are figure 1's, ``map_epochs`` those of all other parts.

    Learning rates are chosen on ``tuning_seeds``, and the curves drawn from ``seeds``; the other
    parts have the first ``map_seeds`` of the tuning seeds, and share the runs at scale, width and
    depth one with the tuning where the epochs agree.
    """

    options: Mapping[str, Any]
    epochs: int
    map_epochs: int
    lrs: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    few_lrs: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003)
    tuning_seeds: tuple[int, ...] = (100, 101)
    map_seeds: int = 1
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    init_scales: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    widths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    depths: tuple[int, ...] = (1, 2, 3)


# patience: the paper's is 10 of 300 epochs; a short run is to halve its learning rate as well.
PRESETS: Mapping[str, Preset] = {
    "small": Preset(
        options={
            "model": "vgg-small", "shrink": 2, "limit": 6000, "validation": 2000, "batch_size": 64,
            "patience": 1,
        },
        epochs=16,
        map_epochs=8,
    ),
    "full": Preset(
        options={
            "model": "vgg13", "limit": 20_000, "validation": 5000, "batch_size": 128, "patience": 2,
        },
        epochs=20,
        map_epochs=8,
        tuning_seeds=(100,),
        seeds=(0, 1, 2),
    ),
}  # fmt: skip
# Of the 1347 training images, 8x8 already.
DIGITS_OPTIONS = {"shrink": 1, "validation": 200, "limit": None}


class Experiments:
    """The cells of every part of one study.

    Args:
        preset: the sizes.
        options: ``TrainConfig`` options that take the preset's place: data, data_dir, limit, ...
    """

    def __init__(self, preset: Preset, options: Mapping[str, Any]) -> None:
        self.preset = preset
        data = options.get("data", "digits")
        small = DIGITS_OPTIONS if data == "digits" else {}
        self.options = {**preset.options, **small, **options}
        # The paper has CIFAR only; sets of ten classes get CIFAR-10's rates.
        self.paper_lr = DEFAULTS["cifar100" if data == "cifar100" else "cifar10"].lr

    def tuning(self) -> Cells:
        """(optimizer, lr): the same learning rates and seeds for both optimizers."""
        seeds, epochs = self.preset.tuning_seeds, self.preset.epochs
        return {
            (name, lr): self._cell(name, lr, seeds, epochs=epochs)
            for name in COMPARED
            for lr in self.preset.lrs
        }

    def figure1(self, tuned_lr: Mapping[str, float]) -> Cells:
        """("paper" or "tuned", optimizer)."""
        return {
            (kind, name): self._cell(name, lrs[name], self.preset.seeds, epochs=self.preset.epochs)
            for kind, lrs in (("paper", self.paper_lr), ("tuned", tuned_lr))
            for name in COMPARED
        }

    def heatmap(self) -> Cells:
        """(optimizer, initial scale, lr)."""
        return self._map("init_scale", self.preset.init_scales, self.preset.lrs)

    def heatmap_no_decay(self) -> Cells:
        """(optimizer, initial scale, lr)."""
        scales = self.preset.init_scales
        return self._map("init_scale", scales, self.preset.lrs, weight_decay=0.0)

    def width(self) -> Cells:
        """(optimizer, width, lr)."""
        return self._map("width", self.preset.widths, self.preset.few_lrs)

    def depth(self) -> Cells:
        """(optimizer, depth, lr)."""
        return self._map("depth", self.preset.depths, self.preset.few_lrs)

    def map_of(self, part: str) -> Cells:
        """The cells of any part but figure 1."""
        methods: dict[str, Callable[[], Cells]] = {
            "heatmap": self.heatmap, "heatmap-no-decay": self.heatmap_no_decay,
            "width": self.width, "depth": self.depth,
        }  # fmt: skip
        return methods[part]()

    def _map(
        self, option: str, values: tuple[float, ...], lrs: tuple[float, ...], **more: Any
    ) -> Cells:
        seeds = self.preset.tuning_seeds[: self.preset.map_seeds]
        more = {"epochs": self.preset.map_epochs, **more}
        return {
            (name, value, lr): self._cell(name, lr, seeds, **{option: value}, **more)
            for value in values
            for lr in lrs
            for name in COMPARED
        }

    def _cell(self, name: str, lr: float, seeds: tuple[int, ...], **more: Any) -> list[TrainConfig]:
        return [
            TrainConfig(
                optimizers=(name,), lr={name: lr}, seeds=(seed,), **{**self.options, **more}
            )
            for seed in seeds
        ]
