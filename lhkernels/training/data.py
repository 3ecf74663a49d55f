"""A data set in memory, and the augmented batches drawn from it, the same for every optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lhkernels.training.config import TrainConfig
from lhkernels.training.errors import ConfigError
from lhkernels.training.models import smallest_image
from lhkernels.training.sources import RawData, load_raw


@dataclass(frozen=True)
class ImageData(RawData):
    """Images (N, C, H, W) uint8 and labels (N,) int64; mean and std (C,) of the training pixels.

    The validation images and labels are None where none are held out.
    """

    mean: Tensor
    std: Tensor
    validation_images: Tensor | None = None
    validation_labels: Tensor | None = None

    def to(self, device: torch.device) -> ImageData:
        tensors = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        moved: dict[str, Any] = {name: part.to(device) for name, part in tensors.items()}
        return replace(self, **moved)

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and labels of "train", "validation" or "test"."""
        images, labels = getattr(self, f"{name}_images"), getattr(self, f"{name}_labels")
        if images is None:
            raise ValueError(f"there are no {name} images; hold some out by validation=N")
        return images, labels

    def normalise(self, images: Tensor) -> Tensor:
        """Float images of mean 0 and std 1 per channel, in the channels-last memory format.

        Convolutions are about a third faster in it on CPUs, and hand it on to what follows.
        """
        images = (images - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        return images.contiguous(memory_format=torch.channels_last)


def load(config: TrainConfig) -> ImageData:
    """The data set that ``config`` names, with its first ``limit`` training images.

    The last ``validation`` training images are held out, whatever ``limit``. Mean and std are taken
    from the images trained on, all of them first made smaller by ``shrink``. Images smaller than
    the model's poolings need get a black border afterwards: 28x28 becomes 32x32 for VGG11/13/16.
    """
    raw = load_raw(config.data, config.data_dir)
    available = len(raw.train_labels) - config.validation
    if available < 2:
        remedy = f"of {len(raw.train_labels)} training images at least 2 must be left to train on"
        raise ConfigError("validation", config.validation, remedy)
    chosen = slice(None, available if config.limit is None else min(config.limit, available))
    mean, std = channel_statistics(shrink(raw.train_images[chosen], config.shrink))

    def prepared(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = shrink(images, config.shrink)
        return zero_pad(images, smallest_image(config.model)), labels.long()

    train = prepared(raw.train_images[chosen], raw.train_labels[chosen])
    test = prepared(raw.test_images, raw.test_labels)
    held_out: tuple[Tensor, ...] = ()
    if config.validation:
        held_out = prepared(raw.train_images[available:], raw.train_labels[available:])
    return ImageData(*train, *test, raw.classes, mean, std, *held_out)


def shrink(images: Tensor, factor: int) -> Tensor:
    """Means over factor x factor pixels of uint8 images, rounded; a remainder is cut off."""
    if factor == 1:
        return images
    return F.avg_pool2d(images.float(), factor).round().byte()


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased std (C,) of uint8 images, exact: from the counts of the values."""
    levels = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        means.append(share @ levels)
        stds.append((share @ (levels - means[-1]) ** 2).sqrt())
    std = torch.stack(stds).float()
    # A channel that never varies holds nothing; dividing it by one leaves it at zero.
    return torch.stack(means).float(), torch.where(std > 0, std, torch.ones_like(std))


def zero_pad(images: Tensor, side: int) -> Tensor:
    """A black border all around where height or width is below ``side``."""
    missing_rows, missing_columns = (max(0, side - size) for size in images.shape[2:])
    left, top = missing_columns // 2, missing_rows // 2
    return F.pad(images, (left, missing_columns - left, top, missing_rows - top))


def random_stream(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch, whatever the optimizer and whatever ran before.

    Epochs count from 1; epoch 0 stands for the initialisation of the weights. Each epoch having its
    own stream, a resumed run needs no saved generator state.
    """
    return torch.Generator().manual_seed(1_000_003 * seed + epoch)


def batches(
    data: ImageData, config: TrainConfig, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented, normalised images and their labels, in an order drawn from (seed, epoch).

    The last, incomplete batch is dropped (other images fall to it in every epoch), unless it is the
    only one: a batch never holds more than all training images.
    """
    stream = random_stream(seed, epoch)
    count = len(data.train_labels)
    order = torch.randperm(count, generator=stream).to(data.train_labels.device)
    size = min(config.batch_size, count)
    for chosen in order[: count // size * size].split(size):
        images = augment(data.train_images[chosen].float(), config.flip, config.rotate, stream)
        yield data.normalise(images), data.train_labels[chosen]


def augment(images: Tensor, flip: float, rotate: float, generator: torch.Generator) -> Tensor:
    """Flip each image left-right with probability ``flip``, then turn it by up to ``rotate`` deg.

    images: (N, C, H, H) float, black = 0, on any device. ``generator`` is the CPU's whatever the
    device of the images, so that the random choices are the same everywhere. ``flip`` 0 and
    ``rotate`` 0 return the images as they are. Corners turned in from outside are black.
    """
    count = len(images)
    if flip > 0:
        chosen = torch.rand(count, generator=generator) < flip
        images = torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)
    if rotate > 0:
        angles = (2 * torch.rand(count, generator=generator) - 1) * rotate
        images = rotate_images(images, angles.to(images.device))
    return images


def rotate_images(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn image i of (N, C, H, H) by ``degrees[i]``, counter-clockwise, about its centre."""
    radians = torch.deg2rad(degrees)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # Row-major [[cos, -sin, 0], [sin, cos, 0]]: maps a point of the output to its source. Rows run
    # downwards, so this turns the content counter-clockwise on the screen.
    affine = torch.stack((cos, -sin, zero, sin, cos, zero), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def steps_per_epoch(data: ImageData, config: TrainConfig) -> int:
    """How many batches ``batches`` yields."""
    return max(1, len(data.train_labels) // config.batch_size)
