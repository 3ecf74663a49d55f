"""Readers of the files image data sets come in: idx (MNIST and its kin), CIFAR pickle and binary.

Each returns uint8 tensors and checks lengths and shapes, so that a truncated file is an error and
not a smaller data set. Any of the files may be gzip-compressed.
"""

from __future__ import annotations

import codecs
import gzip
import io
import math
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lhkernels.training.errors import DataError

CIFAR_SHAPE = (3, 32, 32)
CIFAR_PIXELS = math.prod(CIFAR_SHAPE)
GZIP_MAGIC = b"\x1f\x8b"  # starts neither an idx file, nor a pickle, nor a CIFAR record


def read_idx(path: Path, ndim: int) -> Tensor:
    """The tensor of an idx file.

    Layout: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as
    a big-endian 32-bit integer, then the values in row-major order.
    """
    content = _read(path)
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes((0, 0, 8, ndim)):
        raise broken(path, f"it does not start like an idx file of bytes in {ndim} dimensions")
    shape = list(struct.unpack_from(f">{ndim}I", content, 4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise broken(path, f"{expected} bytes expected for shape {shape}, {len(content)} found")
    return torch.frombuffer(content, dtype=torch.uint8)[header:].view(shape)


def read_cifar(path: Path, label_key: str, label_bytes: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels (N,) of a CIFAR file: .bin, or else a pickle."""
    if ".bin" in path.suffixes:
        return read_cifar_binary(path, label_bytes)
    return read_cifar_pickle(path, label_key)


def cifar_records(path: Path) -> int:
    """How many images a whole CIFAR file has, which the binary layout does not say itself."""
    return 50_000 if path.name.startswith("train") else 10_000


def read_cifar_binary(path: Path, label_bytes: int) -> tuple[Tensor, Tensor]:
    """A record is ``label_bytes`` labels, of which the last counts (CIFAR-100: coarse, then fine),
    followed by the red, green and blue plane."""
    content = _read(path)
    record = label_bytes + CIFAR_PIXELS
    expected = cifar_records(path) * record
    if len(content) != expected:
        raise broken(path, f"{expected} bytes expected, {len(content)} found")
    rows = torch.frombuffer(content, dtype=torch.uint8).view(-1, record)
    return rows[:, label_bytes:].reshape(-1, *CIFAR_SHAPE), rows[:, label_bytes - 1].clone()


def read_cifar_pickle(path: Path, label_key: str) -> tuple[Tensor, Tensor]:
    import numpy

    content = _read(path)
    try:
        entries = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        # Files written by Python 2 have byte strings as keys.
        entries = {k.decode() if isinstance(k, bytes) else k: v for k, v in entries.items()}
        images = torch.from_numpy(numpy.array(entries["data"]))
        labels = torch.tensor(entries[label_key], dtype=torch.uint8)
    # A damaged pickle may raise nearly anything; all of it means the same.
    except Exception as error:
        raise broken(path, f"it can not be unpickled ({type(error).__name__}: {error})") from error
    if images.dtype != torch.uint8 or images.shape != (len(labels), CIFAR_PIXELS):
        expected = f"({len(labels)}, {CIFAR_PIXELS}) bytes expected"
        raise broken(path, f"{expected}, {tuple(images.shape)} of {images.dtype} found")
    return images.view(-1, *CIFAR_SHAPE), labels


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers only; a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy

        array = numpy.zeros(1, numpy.uint8)
        known: dict[str, Any] = {
            "ndarray": numpy.ndarray,
            "dtype": numpy.dtype,
            # How arrays are built, whatever the module's name in the numpy that wrote the file.
            "_reconstruct": array.__reduce__()[0],
            "_frombuffer": array.__reduce_ex__(5)[0],
            "encode": codecs.encode,  # bytes, in the old protocols of Python 3
        }
        if name not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return known[name]


def broken(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: {reason}; delete the file and get it again")


def _read(path: Path) -> bytearray:
    """The file's content, unpacked if it is gzip (whatever its name); writable, as tensors are."""
    try:
        content = path.read_bytes()
        return bytearray(gzip.decompress(content) if content[:2] == GZIP_MAGIC else content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise broken(path, f"its gzip stream is damaged ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror})") from error
