"""Networks by name for ``lhkernels spectrum``, their blocks, and what passes through these."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lhkernels.training.models import LAYOUTS, VGG, initialise, smallest_image

MODELS = ("linear", "mlp", "resnet", *LAYOUTS)
INITS = ("default", "orthogonal", "gaussian")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Residual(nn.Module):
    """``z = x + branch(x)``, as in (12)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Block(NamedTuple):
    """A part of a network: a module, or a linear layer or convolution and its batch norm."""

    name: str  # the path of its first module, such as features.0
    modules: tuple[nn.Module, ...]

    @property
    def module(self) -> nn.Module:
        return self.modules[0] if len(self.modules) == 1 else nn.Sequential(*self.modules)

    @property
    def what(self) -> str:
        return "+".join(type(module).__name__ for module in self.modules)


class Recorded(NamedTuple):
    """A block's input, its output, and the gradient of the network's loss at the output."""

    inputs: Tensor
    output: Tensor
    output_grad: Tensor


def build(name: str, channels: int, side: int, classes: int, width: float) -> nn.Module:
    """A network for images (N, channels, side, side), with PyTorch's usual initialisation.

    The ``linear`` layer is as wide as ``width`` times its input; at width 1, ``mlp`` has 256 units
    and ``resnet`` 16 channels.
    """
    layers: list[nn.Module]
    pixels = channels * side * side
    if name == "linear":
        units = max(1, round(width * pixels))
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, units, bias=False))
    if name == "mlp":
        units = max(1, round(256 * width))
        layers = [nn.Flatten()]
        for n_in in (pixels, units, units):
            layers += [nn.Linear(n_in, units, bias=False), nn.BatchNorm1d(units), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(units, classes, bias=False))
    if name == "resnet":
        n = max(1, round(16 * width))
        layers = [*_conv_bn(channels, n), nn.ReLU()]
        for _ in range(2):
            layers.append(Residual(nn.Sequential(*_conv_bn(n, n), nn.ReLU(), *_conv_bn(n, n))))
        average = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*layers, average, nn.Linear(n, classes, bias=False))
    model = VGG(name, channels, classes, width)
    initialise(model, torch.default_generator)
    return model


def smallest_side(name: str) -> int:
    """Side length of the smallest image that the network takes."""
    return smallest_image(name) if name in LAYOUTS else 1


@torch.no_grad()
def reinitialise(model: nn.Module, init: str, scale: float) -> None:
    """Every linear and convolutional weight by ``init``, then times ``scale``.

    ``gaussian`` has entries N(0, 1 / fan_out), as the Marchenko-Pastur law (10)-(11) wants them;
    ``orthogonal`` orthonormal rows or columns of the weight seen as (outputs, rest); ``default``
    leaves what the network has.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            if init == "orthogonal":
                nn.init.orthogonal_(layer.weight)
            elif init == "gaussian":
                fan_out = layer.weight.shape[0] * math.prod(layer.weight.shape[2:])
                nn.init.normal_(layer.weight, std=fan_out**-0.5)
            layer.weight.mul_(scale)


def named_blocks(model: nn.Module, with_batch_norm: bool = True) -> list[Block]:
    """Every block with a weight matrix, input to output: layers and whole residual blocks."""
    return [
        block_of(model, name, with_batch_norm)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS, Residual))
    ]


def block_of(model: nn.Module, name: str, with_batch_norm: bool = True) -> Block:
    """The module of this path; a layer together with the batch norm behind it.

    Raises:
        KeyError: there is no module of this path.
    """
    modules = dict(model.named_modules())
    first = modules[name]
    found = [first]
    parent = modules[name.rpartition(".")[0]]
    if with_batch_norm and name and isinstance(parent, nn.Sequential):
        children = [*parent, None]
        behind = children[children.index(first) + 1]
        if isinstance(first, (nn.Linear, *CONVOLUTIONS)) and isinstance(behind, BATCH_NORMS):
            found.append(behind)
    return Block(name or "(all)", tuple(found))


def record(model: nn.Module, block: Block, images: Tensor, labels: Tensor) -> Recorded:
    """What the block is given and hands on for these images, in the network's current mode.

    The network's loss is the mean cross-entropy; where the logits are not (N, classes) with all
    labels among the classes, half the mean square of its output.
    """
    seen: dict[str, Tensor] = {}

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["inputs"] = inputs[0].detach().clone()

    def after(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["output"] = output.detach().clone().requires_grad_()
        return seen["output"].clone()  # an in-place activation may follow

    handles = [
        block.modules[0].register_forward_pre_hook(before),
        block.modules[-1].register_forward_hook(after),
    ]
    try:
        output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    classified = output.ndim == 2 and output.shape[1] > int(labels.max())
    loss = F.cross_entropy(output, labels) if classified else 0.5 * output.square().mean()
    (grad,) = torch.autograd.grad(loss, seen["output"])
    return Recorded(seen["inputs"], seen["output"].detach(), grad)


def _conv_bn(n_in: int, n_out: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
    yield nn.BatchNorm2d(n_out)
