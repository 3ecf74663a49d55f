"""Readers of the files image data sets come in: idx (MNIST and its kin), CIFAR pickle and binary.

Each returns uint8 tensors and checks lengths and shapes, so that a truncated file is an error and
not a smaller data set. Any of the files may be gzip-compressed.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lhkernels.training.errors import DataError

CIFAR_SHAPE = (3, 32, 32)
CIFAR_PIXELS = math.prod(CIFAR_SHAPE)
GZIP_MAGIC = b"\x1f\x8b"  # starts neither an idx file, nor a pickle, nor a CIFAR record


def read_idx(path: Path, ndim: int) -> Tensor:
    """The uint8 tensor of an idx file.

    Layout: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as
    a big-endian 32-bit integer, then the values in row-major order.
    """
    content = _read(path)
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes((0, 0, 8, ndim)):
        raise broken(path, f"it does not start like an idx file of bytes in {ndim} dimensions")
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim)]
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise broken(path, f"{expected} bytes expected for shape {shape}, {len(content)} found")
    return _tensor(content[header:]).view(shape)


def read_cifar_binary(path: Path, label_bytes: int, records: int) -> tuple[Tensor, Tensor]:
    """Images (records, 3, 32, 32) and labels (records,) of a CIFAR file in the binary layout.

    A record is ``label_bytes`` labels, of which the last counts (CIFAR-100: coarse, then fine),
    followed by the red, green and blue plane. There is no header, so ``records`` must be known.
    """
    content = _read(path)
    expected = records * (label_bytes + CIFAR_PIXELS)
    if len(content) != expected:
        raise broken(path, f"{expected} bytes expected, {len(content)} found")
    rows = _tensor(content).view(records, label_bytes + CIFAR_PIXELS)
    return rows[:, label_bytes:].reshape(-1, *CIFAR_SHAPE), rows[:, label_bytes - 1].clone()


def read_cifar_pickle(path: Path, label_key: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels (N,) of a CIFAR file in the python layout."""
    content = _read(path)
    try:
        entries = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        # Files written by Python 2 have byte strings as keys.
        entries = {k.decode() if isinstance(k, bytes) else k: v for k, v in entries.items()}
        images = torch.from_numpy(entries["data"])
        labels = torch.tensor(entries[label_key], dtype=torch.uint8)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: this layout needs numpy: pip install numpy, or use the binary layout"
        ) from error
    except DataError as error:
        raise broken(path, str(error)) from error
    # A damaged pickle may raise nearly anything; all of it means the same.
    except Exception as error:
        raise broken(path, f"it can not be unpickled ({type(error).__name__}: {error})") from error
    if images.dtype != torch.uint8 or images.shape != (len(labels), CIFAR_PIXELS):
        raise broken(
            path,
            f"({len(labels)}, {CIFAR_PIXELS}) bytes expected, "
            f"{tuple(images.shape)} of {images.dtype} found",
        )
    return images.view(-1, *CIFAR_SHAPE), labels


def broken(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: {reason}; delete the file and get it again")


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old pickle protocols: ``_codecs.encode(text, "latin1")``."""
    if encoding != "latin1":
        raise DataError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers only; a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        # numpy 2 moved numpy.core to numpy._core; files name either.
        module = module.replace("numpy._core.", "numpy.core.")
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module, name)
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return _empty_array
        if (module, name) == ("numpy.core.numeric", "_frombuffer"):
            return _frombuffer
        raise DataError(f"it asks for {module}.{name}, which no CIFAR file needs")


def _empty_array(subtype: Any, shape: tuple[int, ...], kind: bytes) -> Any:
    """How older protocols begin an array; its type, shape and content are set afterwards."""
    import numpy

    return numpy.empty(shape, numpy.uint8)


def _frombuffer(buffer: bytes, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """What pickle protocol 5 stores for a contiguous numpy array."""
    import numpy

    return numpy.frombuffer(bytearray(buffer), dtype=dtype).reshape(shape, order=order)


def _read(path: Path) -> bytes:
    """The file's content, unpacked if it is gzip (whatever its name)."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror})") from error
    if content[:2] != GZIP_MAGIC:
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise broken(path, f"its gzip stream is damaged ({error})") from error


def _tensor(content: bytes) -> Tensor:
    if not content:  # frombuffer refuses it
        return torch.empty(0, dtype=torch.uint8)
    # A tensor is writable, so its buffer has to be: bytes are not.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
