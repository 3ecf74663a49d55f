"""Normalisation, padding, order and augmentation of the batches."""

import pytest
import torch

from lhkernels.training import TrainConfig, data
from lhkernels.training.data import (
    ImageData,
    augment,
    batches,
    channel_statistics,
    load,
    random_stream,
    rotate_images,
    steps_per_epoch,
    zero_pad,
)
from lhkernels.training.sources import RawData


def make_data(count, channels=1, side=4):
    """Image i is filled with the value i, its label is i."""
    labels = torch.arange(count)
    images = labels.byte().view(-1, 1, 1, 1).expand(count, channels, side, side).contiguous()
    mean, std = torch.zeros(channels), torch.ones(channels)
    return ImageData(images, labels, images, labels, count, mean, std)


def test_channel_statistics_are_those_of_torch():
    images = torch.randint(0, 256, (50, 3, 5, 7), dtype=torch.uint8)
    images[:, 2] = 17
    mean, std = channel_statistics(images)
    expected = images.double()
    torch.testing.assert_close(mean, expected.mean((0, 2, 3)).float())
    torch.testing.assert_close(
        std, torch.tensor([*expected.std((0, 2, 3), correction=0)[:2], 1.0], dtype=torch.float32)
    )


def test_normalised_training_pixels_have_mean_zero_and_std_one():
    data = load(TrainConfig(model="vgg-small", limit=500))
    assert len(data.train_labels) == 500
    images = data.normalise(data.train_images.float()).double()
    assert abs(images.mean()) < 1e-5
    assert abs(images.std(correction=0) - 1) < 1e-5


def test_zero_pad_centres_the_image():
    image = torch.ones(1, 1, 28, 27, dtype=torch.uint8)
    padded = zero_pad(image, 32)
    assert padded.shape == (1, 1, 32, 32)
    assert torch.equal(padded[..., 2:30, 2:29], image)
    assert int(padded.sum()) == image.numel()
    assert torch.equal(zero_pad(image, 16), image)


def test_load_pads_for_the_deep_models_only():
    assert load(TrainConfig(model="vgg13")).train_images.shape == (1347, 1, 32, 32)
    assert load(TrainConfig(model="vgg-small")).train_images.shape == (1347, 1, 8, 8)


@pytest.mark.parametrize("limit", [64, 300])
def test_held_out_and_test_images_are_never_trained_on(monkeypatch, limit):
    images, labels = torch.zeros(240, 1, 8, 8, dtype=torch.uint8), torch.arange(240) % 10
    images[:, 0, 0, 0] = torch.arange(240)
    raw = RawData(images[:200], labels[:200], images[200:], labels[200:], 10)
    monkeypatch.setattr(data, "load_raw", lambda *_: raw)
    loaded, train = load(TrainConfig(limit=limit, validation=50)), range(min(limit, 150))
    parts = {"train": train, "validation": range(150, 200), "test": range(200, 240)}
    for part, numbers in parts.items():
        assert loaded.part(part)[0][:, 0, 0, 0].tolist() == list(numbers)


def test_batches_hold_each_image_at_most_once_and_drop_the_rest():
    data, config = make_data(23), TrainConfig(batch_size=5, rotate=0)
    parts = list(batches(data, config, seed=0, epoch=1))
    assert [len(labels) for _, labels in parts] == [5, 5, 5, 5]
    assert steps_per_epoch(data, config) == 4
    labels = torch.cat([labels for _, labels in parts])
    assert len(labels.unique()) == 20
    images = torch.cat([images for images, _ in parts])
    assert torch.equal(images[:, 0, 0, 0], labels.float())


def test_fewer_images_than_a_batch_make_one_batch():
    data, config = make_data(6), TrainConfig(batch_size=64, rotate=0)
    (part,) = batches(data, config, seed=0, epoch=1)
    assert sorted(part[1].tolist()) == list(range(6))
    assert steps_per_epoch(data, config) == 1


def test_batches_depend_on_seed_and_epoch_alone():
    data, config = make_data(40), TrainConfig(batch_size=40, rotate=10, flip=0.5)

    def first(seed, epoch):
        return next(iter(batches(data, config, seed, epoch)))

    images, labels = first(3, 2)
    torch.manual_seed(99)
    torch.rand(5)
    again_images, again_labels = first(3, 2)
    assert torch.equal(images, again_images)
    assert torch.equal(labels, again_labels)
    assert not torch.equal(labels, first(3, 3)[1])
    assert not torch.equal(labels, first(4, 2)[1])


def test_nothing_to_turn_or_flip_is_the_identity():
    images = torch.rand(4, 2, 9, 9)
    assert augment(images, flip=0, rotate=0, generator=random_stream(0, 1)) is images
    torch.testing.assert_close(rotate_images(images, torch.zeros(4)), images, rtol=0, atol=1e-5)


def test_rotation_by_right_angles_is_counter_clockwise():
    images = torch.rand(3, 2, 8, 8)
    turned = rotate_images(images, torch.tensor([90.0, 180.0, -90.0]))
    for i, quarters in enumerate((1, 2, 3)):
        expected = images[i].rot90(quarters, (1, 2))
        torch.testing.assert_close(turned[i], expected, rtol=0, atol=1e-5)


def test_flips_mirror_whole_images_in_the_given_share():
    images = torch.rand(2000, 1, 4, 4)
    flipped = augment(images, flip=0.3, rotate=0, generator=random_stream(0, 1))
    pairs = zip(flipped, images.flip(3), strict=True)
    mirrored = torch.tensor([torch.equal(a, b) for a, b in pairs])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert torch.equal(mirrored, ~kept)
    # Four standard deviations of a binomial share of 0.3 among 2000.
    assert abs(mirrored.double().mean() - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5


def test_rotations_stay_within_the_angle():
    # A single bright pixel far from the centre: its angle tells by how much each image was turned.
    images = torch.zeros(500, 1, 65, 65)
    images[:, 0, 31:34, 60] = 1
    turned = augment(images, flip=0, rotate=20, generator=random_stream(0, 1))
    weight = turned[:, 0]
    rows = (weight * torch.arange(65.0)[:, None]).sum((1, 2)) / weight.sum((1, 2)) - 32
    columns = (weight * torch.arange(65.0)).sum((1, 2)) / weight.sum((1, 2)) - 32
    angles = torch.rad2deg(torch.atan2(-rows, columns))
    assert angles.abs().max() < 20.5
    assert angles.max() > 19
    assert angles.min() < -19
