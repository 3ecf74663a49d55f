"""Files in every layout give the exact pixels; damaged ones an error that says what to do."""

import gzip
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch

from lhkernels.training import formats, sources
from lhkernels.training.errors import DataError

np = pytest.importorskip("numpy")


def idx_bytes(values):
    header = bytes((0, 0, 8, values.dim()))
    return header + b"".join(n.to_bytes(4, "big") for n in values.shape) + bytes(values.flatten())


def random_bytes(*shape, seed=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)


FASHION = {
    "train-images-idx3-ubyte": random_bytes(7, 28, 28, seed=1),
    "train-labels-idx1-ubyte": random_bytes(7, seed=2, high=10),
    "t10k-images-idx3-ubyte": random_bytes(3, 28, 28, seed=3),
    "t10k-labels-idx1-ubyte": random_bytes(3, seed=4, high=10),
}


def write_fashion(folder, compress):
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in FASHION.items():
        content = idx_bytes(values)
        file = folder / (f"{name}.gz" if compress else name)
        file.write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("by_environment", [False, True])
def test_fashion_mnist_layouts(tmp_path, monkeypatch, compress, below, by_environment):
    write_fashion(tmp_path / below, compress)
    if by_environment:
        monkeypatch.setenv("LHKERNELS_DATA", str(tmp_path))
    data = sources.load_raw("fashion-mnist", None if by_environment else str(tmp_path))
    parts = (data.train_images[:, 0], data.train_labels, data.test_images[:, 0], data.test_labels)
    for part, expected in zip(parts, FASHION.values(), strict=True):
        assert torch.equal(part, expected)
    assert data.train_images.shape[1:] == data.test_images.shape[1:] == (1, 28, 28)
    assert data.classes == 10


def test_named_folder_is_the_only_one_searched(tmp_path, monkeypatch):
    write_fashion(tmp_path / "elsewhere", compress=True)
    monkeypatch.setenv("LHKERNELS_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(sources, "FASHION_MNIST_SYSTEM", tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"not found in .*nowhere.*apt install dataset-fashion-mni"):
        sources.load_raw("fashion-mnist", str(tmp_path / "nowhere"))


def test_missing_file_is_named(tmp_path):
    write_fashion(tmp_path, compress=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="lacks t10k-labels-idx1-ubyte;"):
        sources.load_raw("fashion-mnist", str(tmp_path))


GOOD = idx_bytes(random_bytes(4, 5, 6))
PACKED = gzip.compress(GOOD, mtime=0)  # no clock: it is in the tests' names


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD[:-1], "136 bytes expected for shape .4, 5, 6., 135 found"),
        (GOOD + b"x", "136 bytes expected .* 137 found"),
        (GOOD[:10], "does not start like an idx file"),
        (b"", "does not start like an idx file"),
        (b"\0\0\x0d" + GOOD[3:], "does not start like an idx file"),
        (b"\0\0\x08\x01" + GOOD[4:], "does not start like an idx file"),
        (PACKED[:-20], "gzip stream is damaged"),
        (PACKED[:20] + b"\xff" * 20, "gzip stream is damaged"),
    ],
)
def test_damaged_idx_file(tmp_path, content, reason):
    file = tmp_path / "broken-ubyte"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"broken-ubyte: .*{reason}.*; delete the file and get it"):
        formats.read_idx(file, 3)


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("labels-idx1", [1, 2], "2 labels for 3 images"),
        ("labels-idx1", [1, 10, 2], "label 10 where 0 to 9 are expected"),
        ("images-idx3", torch.zeros(3, 27, 28), r"of \(28, 28\) expected, \(27, 28\) found"),
        ("images-idx3", torch.zeros(0, 28, 28), "3 labels for 0 images"),
    ],
)
def test_images_and_labels_must_fit(tmp_path, file, values, reason):
    write_fashion(tmp_path, compress=False)
    values = torch.as_tensor(values, dtype=torch.uint8)
    (tmp_path / f"t10k-{file}-ubyte").write_bytes(idx_bytes(values))
    with pytest.raises(DataError, match=f"t10k-.*: .*{reason}"):
        sources.load_raw("fashion-mnist", str(tmp_path))


@pytest.mark.skipif(
    not sources.FASHION_MNIST_SYSTEM.exists(), reason="dataset-fashion-mnist is not installed"
)
def test_the_real_fashion_mnist(monkeypatch):
    monkeypatch.delenv("LHKERNELS_DATA", raising=False)
    data = sources.load_raw("fashion-mnist", None)
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.test_images.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [6000] * 10
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10


RECORDS = 4  # in each of the small CIFAR files written here
CIFAR = {  # label key, bytes of labels, classes
    "cifar10": ("labels", 1, 10),
    "cifar100": ("fine_labels", 2, 100),
}


@pytest.fixture(autouse=True)
def _small_cifar(monkeypatch):
    monkeypatch.setattr(formats, "cifar_records", lambda path: RECORDS)


def cifar_parts(name):
    """Name, images (N, 3072) and labels (N,) of each file."""
    for i, (file,) in enumerate(sources.FILES[name].parts):
        labels = random_bytes(RECORDS, seed=50 + i, high=CIFAR[name][2])
        yield file, random_bytes(RECORDS, 3072, seed=i), labels


def write_cifar_pickles(folder, name, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    for file, images, labels in cifar_parts(name):
        entries = {b"data": images.numpy(), CIFAR[name][0].encode(): labels.tolist()}
        entries |= {b"batch_label": b"x", b"filenames": [b"a.png"] * RECORDS}
        (folder / file).write_bytes(pickle.dumps(entries, protocol=protocol))


def write_cifar_binaries(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    for file, images, labels in cifar_parts(name):
        coarse = torch.full((RECORDS, CIFAR[name][1] - 1), 3, dtype=torch.uint8)
        content = torch.cat((coarse, labels[:, None], images), dim=1)
        (folder / f"{file}.bin").write_bytes(bytes(content.flatten()))


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize(
    ("write", "below"),
    [
        (partial(write_cifar_pickles, protocol=2), 1),
        (partial(write_cifar_pickles, protocol=4), 0),
        (partial(write_cifar_pickles, protocol=5), 0),
        (write_cifar_binaries, 0),
        (write_cifar_binaries, 2),
    ],
)
def test_cifar_layouts(tmp_path, name, write, below):
    write(tmp_path / sources.FILES[name].folders[below], name)
    data = sources.load_raw(name, str(tmp_path))
    *train, (_, test_images, test_labels) = cifar_parts(name)
    assert torch.equal(data.train_images.flatten(1), torch.cat([part[1] for part in train]))
    assert torch.equal(data.train_labels, torch.cat([part[2] for part in train]))
    assert torch.equal(data.test_images.flatten(1), test_images)
    assert torch.equal(data.test_labels, test_labels)
    assert data.train_images.shape[1:] == (3, 32, 32)
    assert data.classes == CIFAR[name][2]
    # Planes in the order red, green, blue, each row by row.
    assert data.test_images[1, 2, 31, 5] == test_images[1, 2 * 1024 + 31 * 32 + 5]


@pytest.mark.parametrize(
    ("write", "file", "cut", "reason"),
    [  # 3073 bytes are a whole record
        (write_cifar_binaries, "data_batch_3.bin", 3073, "12292 bytes expected, 9219 found"),
        (write_cifar_pickles, "data_batch_3", 100, "it can not be unpickled"),
    ],
)
def test_truncated_cifar_file(tmp_path, write, file, cut, reason):
    write(tmp_path, "cifar10")
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-cut])
    with pytest.raises(DataError, match=f"{file}: {reason}"):
        sources.load_raw("cifar10", str(tmp_path))


def test_cifar_pickle_of_other_shape(tmp_path):
    file = tmp_path / "batch"
    entries = {b"data": np.zeros((3, 3071), np.uint8), b"labels": [0, 1, 2]}
    file.write_bytes(pickle.dumps(entries, protocol=2))
    with pytest.raises(DataError, match=r"batch: \(3, 3072\) bytes expected, \(3, 3071\)"):
        formats.read_cifar_pickle(file, "labels")


class RunsCode:
    def __reduce__(self):
        return Path.touch, (Path("made-by-pickle"),)


def test_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "batch"
    file.write_bytes(pickle.dumps({"data": RunsCode(), "labels": []}))
    with pytest.raises(DataError, match="which no CIFAR file needs"):
        formats.read_cifar_pickle(file, "labels")
    assert not Path("made-by-pickle").exists()


def test_missing_cifar_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("LHKERNELS_DATA", raising=False)
    with pytest.raises(DataError, match=r"no folder is named; get .*kriz/cifar.html.*--data-dir"):
        sources.load_raw("cifar10", None)
    with pytest.raises(DataError, match="cifar-100-binary"):
        sources.load_raw("cifar100", str(tmp_path))


def test_digits_split_is_fixed_stratified_and_disjoint():
    pytest.importorskip("sklearn")
    data = sources.digits()
    assert data.train_images.shape == (1347, 1, 8, 8)
    assert data.test_images.shape == (450, 1, 8, 8)
    assert int(data.train_images.max()) == 16
    train, test = torch.bincount(data.train_labels), torch.bincount(data.test_labels)
    assert (test / (train + test) - 450 / 1797).abs().max() < 0.005
    again = sources.digits()
    assert torch.equal(data.test_images, again.test_images)
    train_set = {bytes(image.flatten()) for image in data.train_images}
    assert not train_set & {bytes(image.flatten()) for image in data.test_images}
