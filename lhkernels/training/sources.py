"""Where each data set's files are looked for, and what they must hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lhkernels.training.errors import DataError
from lhkernels.training.formats import broken, read_cifar, read_idx

FASHION_MNIST_SYSTEM = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_REMEDY = (
    "apt install dataset-fashion-mnist, or put the four *-ubyte.gz files of "
    "https://github.com/zalandoresearch/fashion-mnist into a folder and name it with --data-dir"
)
CIFAR_REMEDY = (
    "get the python or the binary version from https://www.cs.toronto.edu/~kriz/cifar.html, "
    "unpack it and name its folder with --data-dir"
)


@dataclass(frozen=True)
class RawData:
    """Images (N, C, H, W) uint8 and labels (N,), as the files have them."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


class Files(NamedTuple):
    """How one data set comes."""

    title: str
    classes: int
    parts: tuple[tuple[str, ...], ...]  # the names of each part's files; the last is the test's
    read: Callable[..., tuple[Tensor, Tensor]]  # images and labels of one part's files
    folders: tuple[str, ...]  # below the one that is named
    remedy: str


def read_fashion_mnist(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (28, 28):
        shape = tuple(images.shape[1:])
        raise broken(image_file, f"images of (28, 28) expected, {shape} found")
    return images[:, None], labels


FILES = {
    "fashion-mnist": Files(
        "Fashion-MNIST", 10,
        tuple((f"{p}-images-idx3-ubyte", f"{p}-labels-idx1-ubyte") for p in ("train", "t10k")),
        read_fashion_mnist, ("", "FashionMNIST/raw"), FASHION_MNIST_REMEDY,
    ),
    "cifar10": Files(
        "cifar10", 10, (*((f"data_batch_{i}",) for i in range(1, 6)), ("test_batch",)),
        partial(read_cifar, label_key="labels", label_bytes=1),
        ("", "cifar-10-batches-py", "cifar-10-batches-bin"), CIFAR_REMEDY,
    ),
    "cifar100": Files(
        "cifar100", 100, (("train",), ("test",)),
        partial(read_cifar, label_key="fine_labels", label_bytes=2),
        ("", "cifar-100-python", "cifar-100-binary"), CIFAR_REMEDY,
    ),
}  # fmt: skip


def load_raw(name: str, data_dir: str | None) -> RawData:
    """``name`` from ``data_dir``, else from the environment variable LHKERNELS_DATA, else (Fashion-
    MNIST only) from the folder of the Debian package."""
    if name == "digits":
        return digits()
    named = data_dir or os.environ.get("LHKERNELS_DATA")
    roots = [Path(named).expanduser()] if named else []
    if name == "fashion-mnist" and not data_dir:
        roots.append(FASHION_MNIST_SYSTEM)
    known = FILES[name]
    found = find_files(known, [root / below for root in roots for below in known.folders])
    *train, test = (read_part(known, [found[file] for file in part]) for part in known.parts)
    train_images, train_labels = (torch.cat(tensors) for tensors in zip(*train, strict=True))
    return RawData(train_images, train_labels, *test, known.classes)


def digits() -> RawData:
    """scikit-learn's 1797 digits, 8x8, values 0 to 16, split 1347 / 450 with equal class shares."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    # The split is part of the data set: it does not change with the seed of a run.
    parts = train_test_split(
        data.images, data.target, test_size=450, stratify=data.target, random_state=0
    )
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return RawData(train.byte()[:, None], train_labels, test.byte()[:, None], test_labels, 10)


def find_files(known: Files, folders: list[Path]) -> dict[str, Path]:
    """The files, plain or .gz, of the first layout that is found in the first of the folders."""
    names = [file for part in known.parts for file in part]
    for folder, suffix in product(folders, ("", ".bin")):  # .bin: CIFAR's binary version
        found = {
            file: path
            for packed, file in product((".gz", ""), names)
            if (path := folder / f"{file}{suffix}{packed}").is_file()
        }
        missing = [file + suffix for file in names if file not in found]
        if not missing:
            return found
        if found:
            raise DataError(f"{known.title}: {folder} lacks {', '.join(missing)}; {known.remedy}")
    looked = f"not found in {', '.join(map(str, folders))}" if folders else "no folder is named"
    raise DataError(f"{known.title}: {looked}; {known.remedy}")


def read_part(known: Files, files: list[Path]) -> tuple[Tensor, Tensor]:
    """Images and labels that fit each other."""
    images, labels = known.read(*files)
    if len(labels) != len(images) or len(images) == 0:
        raise broken(files[-1], f"{len(labels)} labels for {len(images)} images")
    if (largest := int(labels.max())) >= known.classes:
        expected = f"0 to {known.classes - 1} are expected"
        raise broken(files[-1], f"label {largest} where {expected}")
    return images, labels
