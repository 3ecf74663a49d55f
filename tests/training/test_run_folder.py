"""A folder that can not be written, is in use, or is asked for too much: errors, nothing lost."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from train_cases import assert_same_state, checkpoint, metrics, small

from lhkernels.training import TrainingError, train, trainer
from lhkernels.training.folder import RunFolder

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@contextmanager
def files_of_at_most(size):
    """A disk that is full, as far as a process can make itself one."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_what_is_finished_can_go_on(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small(epochs=3), whole)
    with files_of_at_most(100), pytest.raises(TrainingError, match="can not be written"):
        train(small(epochs=1), parts)
    assert not [path for path in parts.rglob("*") if "tmp" in path.name]
    train(small(epochs=1), parts, overwrite=True)
    before = checkpoint(parts, "sgd")
    with files_of_at_most(10_000), pytest.raises(TrainingError) as caught:
        train(small(epochs=3), parts, resume=True)
    assert str(caught.value).startswith(f"--out {parts}: can not be written (File too large); ")
    assert not [path for path in parts.rglob("*") if "tmp" in path.name]
    assert_same_state(checkpoint(parts, "sgd"), before)
    train(small(epochs=3), parts, resume=True)
    assert metrics(parts) == metrics(whole)


@pytest.mark.parametrize("refused", ["write_bytes", "unlink", "mkdir"])
def test_a_read_only_folder_is_told(tmp_path, monkeypatch, refused):
    train(small(), tmp_path)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, refused, refuse)
    with pytest.raises(TrainingError, match=r"can not be written \(Read-only file system\); "):
        train(small(), tmp_path, overwrite=True)


def test_a_folder_or_lock_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / ".lock").mkdir()
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(TrainingError, match=f"{out}: can not be written"):
            train(small(), out)


HOLD = """
import sys
from lhkernels.training.folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    train(small(epochs=1), tmp_path)
    before = metrics(tmp_path)
    root = str(Path(__file__).parents[2])
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "locked\n"
        for how in ({"overwrite": True}, {"resume": True}, {}):
            with pytest.raises(TrainingError, match="another process trains into it"):
                train(small(), tmp_path, **how)
        assert metrics(tmp_path) == before
    finally:
        other.kill()  # a crash lets go of the folder
        other.communicate()
    assert train(small(), tmp_path, resume=True)["runs"][0]["epochs"] == 2


def test_the_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path).locked():
        raise ZeroDivisionError
    train(small(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 10**6}, "--validation 1000000"),
        ({"data": "fashion-mnist", "data_dir": "nowhere"}, "not found in nowhere"),
    ],
)
def test_wrong_options_are_told_before_the_folder_is_looked_at(tmp_path, options, message):
    (tmp_path / "report.json").touch()
    with pytest.raises(TrainingError, match=message):
        train(small(**options), tmp_path)


def test_what_does_not_fit_into_memory_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "Trainer", lambda *_: pytest.fail("began to fill the memory"))
    with pytest.raises(TrainingError, match="not enough memory; give a smaller --model, --width"):
        train(small(model="vgg16", width=64, depth=64), tmp_path / "new")
    assert not (tmp_path / "new").exists()
