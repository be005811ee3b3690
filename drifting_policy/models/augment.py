"""Random changes of images "b to h w c" that keep what they show. Pure functions; the frames of one window change alike.

What is random comes from a generator on the CPU, one draw per window, so that it depends neither on the device nor on what was
drawn before. Colours are RGB in 0..1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Luma of ITU-R BT.601, in red, green and blue.
LUMA = (0.299, 0.587, 0.114)

Images = Float[Tensor, "b to h w c"]
Crops = Float[Tensor, "b to h2 w2 c"]


def center_crop(images: Images, height: int, width: int) -> Crops:
    """The middle of each image; with an odd rest, the part nearer to the first pixel."""
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def random_crop(images: Images, height: int, width: int, generator: torch.Generator) -> Crops:
    """A part of each image, at a place that is drawn for each window: all of them are equally likely."""
    tops, lefts = (
        torch.randint(0, size - part + 1, (len(images),), generator=generator).tolist()
        for size, part in ((images.shape[2], height), (images.shape[3], width))
    )
    parts = [window[:, top : top + height, left : left + width] for window, top, left in zip(images, tops, lefts, strict=True)]
    return torch.stack(parts)


def jitter_colours(
    images: Images,
    generator: torch.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Images:
    """Images with other colours, in this order: each window by factors in 1 ± strength, and a turn of hue within ± `hue` turns.

    A strength of 0 changes nothing, and draws nothing.
    """
    count = len(images)

    def drawn(strength: float) -> Tensor:
        draw = (2 * torch.rand(count, generator=generator) - 1) * strength
        return draw.to(images)[:, None, None, None, None]

    if brightness > 0:
        images = (images * (1 + drawn(brightness))).clamp(0, 1)
    if contrast > 0:
        images = _blend(images, _luma(images).mean(dim=(1, 2, 3), keepdim=True), 1 + drawn(contrast))
    if saturation > 0:
        images = _blend(images, _luma(images), 1 + drawn(saturation))
    if hue > 0:
        images = turn_hue(images, drawn(hue))
    return images


def turn_hue(images: Images, turns: Float[Tensor, "b 1 1 1 1"]) -> Images:
    """Images whose hue is turned by a share of the colour circle; value and chroma (of HSV) stay.

    Source: the hexagon of Smith 1978 (doi 10.1145/965139.807361), and its inverse written as one function of the hue.
    """
    value, chroma = images.amax(dim=-1, keepdim=True), images.amax(dim=-1, keepdim=True) - images.amin(dim=-1, keepdim=True)
    red, green, blue = images[..., 0:1], images[..., 1:2], images[..., 2:3]
    span = chroma.clamp_min(torch.finfo(images.dtype).tiny)  # where there is no chroma, the hue does not matter
    of_blue = torch.where(value == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    hue = torch.where(value == red, (green - blue) / span, of_blue) + 6 * turns
    place = torch.remainder(torch.tensor([5.0, 3.0, 1.0]).to(images) + hue, 6)
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def _luma(images: Images) -> Float[Tensor, "b to h w 1"]:
    return (images * torch.tensor(LUMA).to(images)).sum(dim=-1, keepdim=True)


def _blend(images: Images, other: Tensor, share: Tensor) -> Images:
    """`other` at share 0, `images` at share 1, and beyond it what lies on the other side."""
    return (other + (images - other) * share).clamp(0, 1)
