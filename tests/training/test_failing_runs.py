"""Checkpoints that hold something else, and optimizers that refuse to begin: clear errors."""

import shutil

import pytest
import torch

from lhkernels.training import TrainConfig, TrainingError, train
from lhkernels.training.config import RunKey
from lhkernels.training.data import load
from lhkernels.training.loop import Run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def small(**options):
    """A run of a few milliseconds an epoch."""
    return TrainConfig(**{"limit": 160, "batch_size": 32, "width": 0.25, "epochs": 2, **options})


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """The folder of a run that goes on after one epoch."""
    folder = tmp_path_factory.mktemp("one epoch")
    train(small(epochs=1), folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state, other: torch.zeros(3), "does not hold this run's state"),
        (lambda state, other: {"weights": torch.zeros(3)}, "does not hold this run's state"),
        (lambda state, other: state | {"history": [{}]}, "does not hold this run's state"),
        (lambda state, other: other, "does not hold this run's state"),
        (lambda state, other: state | {"model": {}}, "does not fit the run's network"),
        (lambda state, other: state | {"optimizer": {}}, "does not fit the run's network"),
        (lambda state, other: state | {"scheduler": 1}, "does not fit the run's network"),
    ],
)
def test_resuming_from_a_checkpoint_with_other_contents_names_it(
    tmp_path, one_epoch, damage, message
):
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    file, other = (tmp_path / "checkpoints" / f"{name}-seed0.pt" for name in ("sgd", "sa-sgd"))
    states = [torch.load(path, weights_only=True) for path in (file, other)]
    torch.save(damage(*states), file)
    with pytest.raises(TrainingError) as caught:
        train(small(), tmp_path, resume=True)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "delete it to train this run again" in str(caught.value)


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_an_optimizers_error_is_the_users_at_its_start_only(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error("no step today")

    run = Run(small(), RunKey(1.0, 0, "sgd"), load(small()), torch.device("cpu"))
    run.run_epoch()
    monkeypatch.setattr(torch.optim.SGD, "step", refuse)
    with pytest.raises(TrainingError, match=r"sgd \(seed 0\) can not train: no step today; "):
        train(small(), tmp_path)
    monkeypatch.setattr(run.optimizer, "step", refuse)
    with pytest.raises(error, match=r"^no step today$"):
        run.run_epoch()
