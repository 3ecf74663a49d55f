"""The networks have the paper's structure, and init-scale does what it says."""

import copy

import pytest
import torch
from torch import nn

from lhkernels.training.data import random_stream
from lhkernels.training.models import (
    LAYOUTS,
    VGG,
    initialise,
    normalised_weights,
    smallest_image,
)

# Weights of the 3x3 convolutions of Simonyan and Zisserman's table 1 (A, B, D), three input
# channels, plus a 512 x 10 linear layer.
WEIGHTS = {"vgg11": 9_217_728 + 5120, "vgg13": 9_402_048 + 5120, "vgg16": 14_710_464 + 5120}


@pytest.mark.parametrize(("layout", "count"), WEIGHTS.items())
def test_number_of_weights(layout, count):
    model = VGG(layout, channels=3, classes=10)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(normalised_weights(model)) == int(layout.removeprefix("vgg")) - 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_structure(layout):
    model = VGG(layout, channels=1, classes=7, width=0.25)
    assert all(name.endswith("weight") for name, _ in model.named_parameters())
    layers = list(model.features)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            norm, activation = layers[i + 1 : i + 3]
            assert isinstance(norm, nn.BatchNorm2d)
            assert not norm.affine
            assert norm.track_running_stats
            assert isinstance(activation, nn.ReLU)
    assert sum(isinstance(layer, nn.Linear) for layer in model.modules()) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("larger", [0, 9])
def test_any_image_from_the_smallest_on(layout, larger):
    side = smallest_image(layout) + larger
    model = VGG(layout, channels=2, classes=7, width=0.1)
    assert model(torch.rand(3, 2, side, side)).shape == (3, 7)


def test_width_multiplies_the_channels():
    widths = [w.shape[0] for w in normalised_weights(VGG("vgg11", 3, 10, width=0.5))]
    assert widths == [32, 64, 128, 128, 256, 256, 256, 256]


def test_initialisation_follows_from_the_stream_alone():
    first, second = VGG("vgg-small", 1, 10), VGG("vgg-small", 1, 10)
    initialise(first, random_stream(5, 0))
    torch.rand(3)
    initialise(second, random_stream(5, 0))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    initialise(second, random_stream(6, 0))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_kaiming_variance():
    model = VGG("vgg13", 3, 10)
    initialise(model, random_stream(0, 0))
    for weight in normalised_weights(model):
        fan_in = weight[0].numel()
        torch.testing.assert_close(weight.var() * fan_in, torch.tensor(2.0), rtol=0.1, atol=0)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_init_scale_multiplies_the_normalised_weights_only(scale):
    plain, scaled = VGG("vgg-small", 1, 10), VGG("vgg-small", 1, 10)
    initialise(plain, random_stream(0, 0))
    initialise(scaled, random_stream(0, 0), scale)
    for p, q in zip(normalised_weights(plain), normalised_weights(scaled), strict=True):
        assert torch.equal(p * scale, q)
    assert torch.equal(plain.classifier.weight, scaled.classifier.weight)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_init_scale_leaves_the_function_alone(scale):
    plain = VGG("vgg-small", 1, 10).double()
    initialise(plain, random_stream(0, 0))
    for layer in plain.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-30  # eps alone breaks the invariance
    scaled = copy.deepcopy(plain)
    initialise(scaled, random_stream(0, 0), scale)
    images = torch.rand(16, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(plain(images), scaled(images), rtol=1e-10, atol=1e-10)
