"""Where each data set's files are looked for, and what they must hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lhkernels.training import formats
from lhkernels.training.errors import DataError

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


@dataclass(frozen=True)
class CifarLayout:
    """Names and sizes of one CIFAR data set's files; those of the binary version end in .bin."""

    folders: tuple[str, ...]
    train: tuple[str, ...]
    test: str
    label_key: str
    label_bytes: int
    classes: int
    train_records: int  # in each training file
    test_records: int


CIFAR = {
    "cifar10": CifarLayout(
        folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        label_key="labels",
        label_bytes=1,
        classes=10,
        train_records=10_000,
        test_records=10_000,
    ),
    "cifar100": CifarLayout(
        folders=("cifar-100-python", "cifar-100-binary"),
        train=("train",),
        test="test",
        label_key="fine_labels",
        label_bytes=2,
        classes=100,
        train_records=50_000,
        test_records=10_000,
    ),
}


def load_raw(name: str, data_dir: str | None) -> RawData:
    """``name`` from ``data_dir``, else from the environment variable LHKERNELS_DATA, else (Fashion-
    MNIST only) from the folder of the Debian package."""
    if name == "digits":
        return digits()
    folder = data_dir or os.environ.get("LHKERNELS_DATA")
    roots = [Path(folder).expanduser()] if folder else []
    if name in CIFAR:
        return cifar(name, roots)
    return fashion_mnist(roots if data_dir else [*roots, FASHION_MNIST_SYSTEM])


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


def fashion_mnist(roots: list[Path]) -> RawData:
    """60000 + 10000 images of 28x28 from idx files in a folder, or in torchvision's layout."""
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    folders = [folder for root in roots for folder in (root, root / "FashionMNIST" / "raw")]
    files = find_files("Fashion-MNIST", folders, [names], FASHION_MNIST_REMEDY)
    tensors = []
    for image_file, label_file in (files[:2], files[2:]):
        images, labels = formats.read_idx(image_file, 3), formats.read_idx(label_file, 1)
        if images.shape[1:] != (28, 28):
            shape = tuple(images.shape[1:])
            raise formats.broken(image_file, f"images of (28, 28) expected, {shape} found")
        check_labels(label_file, labels, len(images), 10)
        tensors += [images[:, None], labels]
    train_images, train_labels, test_images, test_labels = tensors
    return RawData(train_images, train_labels, test_images, test_labels, 10)


def cifar(name: str, roots: list[Path]) -> RawData:
    """50000 + 10000 images of 3x32x32 from the python or the binary layout."""
    layout = CIFAR[name]
    names = [*layout.train, layout.test]
    folders = [folder for root in roots for folder in (root, *(root / f for f in layout.folders))]
    files = find_files(name, folders, [names, [f"{n}.bin" for n in names]], CIFAR_REMEDY)
    parts = []
    for file in files:
        if ".bin" in file.suffixes:
            records = layout.test_records if file is files[-1] else layout.train_records
            images, labels = formats.read_cifar_binary(file, layout.label_bytes, records)
        else:
            images, labels = formats.read_cifar_pickle(file, layout.label_key)
        check_labels(file, labels, len(images), layout.classes)
        parts.append((images, labels))
    train_images, train_labels = (torch.cat(tensors) for tensors in zip(*parts[:-1], strict=True))
    test_images, test_labels = parts[-1]
    return RawData(train_images, train_labels, test_images, test_labels, layout.classes)


def find_files(what: str, folders: list[Path], layouts: list[list[str]], remedy: str) -> list[Path]:
    """The files of the first layout found in the first of the folders, each plain or as .gz."""
    for folder in folders:
        for names in layouts:
            found: dict[str, Path] = {}
            for name in names:
                for candidate in (folder / name, folder / f"{name}.gz"):
                    if candidate.is_file():
                        found.setdefault(name, candidate)
            missing = [name for name in names if name not in found]
            if not missing:
                return [found[name] for name in names]
            if found:
                raise DataError(f"{what}: {folder} lacks {', '.join(missing)}; {remedy}")
    looked = f"not found in {', '.join(map(str, folders))}" if folders else "no folder is named"
    raise DataError(f"{what}: {looked}; {remedy}")


def check_labels(path: Path, labels: Tensor, images: int, classes: int) -> None:
    if len(labels) != images or images == 0:
        raise formats.broken(path, f"{len(labels)} labels for {images} images")
    if int(labels.max()) >= classes:
        raise formats.broken(
            path, f"label {int(labels.max())} where 0 to {classes - 1} are expected"
        )
