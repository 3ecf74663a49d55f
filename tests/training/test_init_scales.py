"""Several initial scales in one call: the runs of the single scales, side by side."""

import pytest
from study_cases import assert_same_state, checkpoint, metrics, small, without_seconds

from lhkernels.training import TrainingError, train
from lhkernels.training.config import RunKey
from lhkernels.training.folder import RunFolder
from lhkernels.training.plots import label, spread

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_each_scale_trains_as_if_it_were_alone(tmp_path):
    report = train(small(init_scale=(10.0, 1.0), seeds=(0, 1)), tmp_path / "both")
    both = without_seconds(metrics(tmp_path / "both"))
    alone = []
    for scale in (10.0, 1.0):
        out = tmp_path / str(scale)
        single = train(small(init_scale=scale, seeds=(0, 1)), out)
        alone += without_seconds(metrics(out))
        for name in ("sgd", "sa-sgd"):
            file = RunFolder(out).checkpoint(RunKey(scale, 1, name)).name
            assert file == {1.0: f"{name}-seed1.pt", 10.0: f"{name}-seed1-scale10.0.pt"}[scale]
            assert_same_state(
                checkpoint(tmp_path / "both", name, file[len(name) + 5 : -3]),
                checkpoint(out, name, file[len(name) + 5 : -3]),
            )
        rows = [row for row in report["summary"] if row["init_scale"] == scale]
        for row, expected in zip(rows, single["summary"], strict=True):
            assert row["optimizer"] == expected["optimizer"]
            assert row["final_train_loss"] == expected["final_train_loss"]
    assert both == alone
    assert both[0]["train_loss"] != both[-4]["train_loss"]


def test_several_scales_go_on_where_they_stopped(tmp_path):
    scales = small(init_scale=(0.1, 10.0))
    train(scales, tmp_path / "whole")
    train(small(init_scale=(0.1, 10.0), epochs=1), tmp_path / "parts")
    with pytest.raises(TrainingError, match=r"--init-scale 0.1: the run to resume has 0.1,10.0"):
        train(small(init_scale=0.1), tmp_path / "parts", resume=True)
    train(scales, tmp_path / "parts", resume=True)
    whole, parts = (without_seconds(metrics(tmp_path / name)) for name in ("whole", "parts"))
    assert whole == parts


def test_the_picture_is_of_the_last_epochs_over_the_scale():
    records = [
        {"epoch": 2, "init_scale": scale, "train_loss": loss}
        for scale, loss in ((1.0, 3.0), (0.1, 5.0), (1.0, 1.0), (10.0, None))
    ]
    assert spread(records, "train_loss", 2, "init_scale") == (
        [0.1, 1.0], [10.0, 4.0], [10.0, 2.0], [10.0, 6.0],
    )  # fmt: skip
    config = small(init_scale=(0.1, 1.0, 10.0), seeds=(0, 1), lr=0.5)
    histories = [[record] for record in records]
    assert label(config, histories, "sgd") == "sgd, lr 0.5: diverged in epoch 2 (1 of 6 runs)"
    assert label(config, histories[:3], "sgd") == "sgd, lr 0.5"
