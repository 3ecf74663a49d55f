"""Random flips and small rotations of a whole batch, in torch only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, flip: float, rotate: float, generator: torch.Generator) -> Tensor:
    """Flip each image left-right with probability ``flip``, then turn it by up to ``rotate`` deg.

    images: (N, C, H, H) float, black = 0, on any device. ``generator`` is the CPU's whatever the
    device of the images, so that the random choices are the same everywhere. ``flip`` 0 and
    ``rotate`` 0 return the images as they are. Corners turned in from outside are black.
    """
    count = len(images)
    if flip > 0:
        chosen = torch.rand(count, generator=generator) < flip
        images = torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)
    if rotate > 0:
        angles = (2 * torch.rand(count, generator=generator) - 1) * rotate
        images = rotate_images(images, angles.to(images.device))
    return images


def rotate_images(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn image i of (N, C, H, H) by ``degrees[i]``, counter-clockwise, about its centre."""
    radians = torch.deg2rad(degrees)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # Row-major [[cos, -sin, 0], [sin, cos, 0]]: maps a point of the output to its source. Rows run
    # downwards, so this turns the content counter-clockwise on the screen.
    affine = torch.stack((cos, -sin, zero, sin, cos, zero), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
