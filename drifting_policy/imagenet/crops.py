"""Random crops, resized to the size of the image: the augmentation that the feature encoder is trained with."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

TRIES = 10  # boxes drawn for an image, of which the first that fits is taken
LOG_RATIO = math.log(4 / 3)  # width over height lies between 3/4 and 4/3


def random_crops(images: Float[Tensor, "b c h w"], *, smallest: float, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """A random part of each image in its full size (Szegedy et al. 2015), by bicubic interpolation and within [-1, 1].

    Args:
        images: In [-1, 1], square.
        smallest: The share of the area that a part has at least, in (0, 1]; shares are drawn evenly.
        generator: Where boxes come from, on any device.
    """
    boxes = draw_boxes(len(images), smallest=smallest, generator=generator).to(images.device)
    left, top, width, height = boxes.T
    # The part of the square [-1, 1] x [-1, 1] of sampling positions that each box covers.
    scale = torch.zeros(len(images), 2, 3, device=images.device)
    scale[:, 0, 0], scale[:, 1, 1] = width, height
    scale[:, 0, 2], scale[:, 1, 2] = 2 * left + width - 1, 2 * top + height - 1
    grid = functional.affine_grid(scale, list(images.shape), align_corners=False)
    parts = functional.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return parts.clamp(-1, 1)


def draw_boxes(count: int, *, smallest: float, generator: torch.Generator) -> Float[Tensor, "b 4"]:
    """Left, top, width and height of `count` boxes inside the unit square.

    Areas are drawn evenly from [smallest, 1] and the logarithm of the ratio of the edges evenly too, until the box fits; one
    that never does is the whole square.
    """
    drawn = torch.rand(4, count, TRIES, generator=generator, device=generator.device)
    area = smallest + (1 - smallest) * drawn[0]
    ratio = torch.exp((2 * drawn[1] - 1) * LOG_RATIO)
    edges = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1)  # "b tries 2"
    fits = (edges <= 1).all(dim=-1)
    first = fits.int().argmax(dim=1)
    rows = torch.arange(count, device=edges.device)
    edges = torch.where(fits.any(dim=1)[:, None], edges[rows, first], 1.0)
    corner = torch.stack([drawn[2], drawn[3]], dim=-1)[:, 0] * (1 - edges)
    return torch.cat([corner, edges], dim=1)
