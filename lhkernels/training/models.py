"""VGG nets as the paper trains them: one fully connected layer, no bias, BN without parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Output channels of each 3x3 convolution; "M" halves the image by 2x2 max pooling.
LAYOUTS: dict[str, tuple[int | str, ...]] = {
    "vgg-small": (16, "M", 32, 32, "M", 64, 64),
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (
        *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
        *(512, 512, 512, "M", 512, 512, 512, "M"),
    ),
}


class VGG(nn.Module):
    """(convolution, batch normalisation, ReLU) times B-1, then one linear layer.

    Images (N, channels, H, W) with H and W at least ``smallest_image(layout)`` go to logits
    (N, classes). What the last pooling leaves of the image is averaged, so that any larger size
    works too; on 32x32 images the five poolings of VGG11/13/16 leave one position, no average.
    ``width`` multiplies the numbers of channels; each convolution of the layout stands ``depth``
    times in a row.
    """

    def __init__(
        self, layout: str, channels: int, classes: int, width: float = 1.0, depth: int = 1
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = channels
        for entry in LAYOUTS[layout]:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            n_out = max(1, round(entry * width))
            for _ in range(depth):
                layers += [
                    nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(n_out, affine=False),
                    nn.ReLU(inplace=True),
                ]
                n_in = n_out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(n_in, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def smallest_image(layout: str) -> int:
    """Side length below which the poolings would leave nothing: 2 to the number of poolings."""
    return 2 ** LAYOUTS[layout].count("M")


def normalised_weights(model: VGG) -> list[Tensor]:
    """The weights followed by batch normalisation: every convolution's, not the linear layer's."""
    return [layer.weight for layer in model.features if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def initialise(model: VGG, generator: torch.Generator, scale: float = 1.0) -> None:
    """Kaiming-normal convolutions (fan in, ReLU gain), PyTorch's usual linear layer.

    Every weight followed by BN is then multiplied by ``scale``, which leaves the function alone (up
    to BN's eps) but not the gradients: they scale by 1/``scale``.
    """
    for weight in normalised_weights(model):
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        weight.mul_(scale)
    nn.init.kaiming_uniform_(model.classifier.weight, a=5**0.5, generator=generator)
