"""The batches of a training of images are a function of (seed, step); crops are parts of the image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from drifting_policy.imagenet.crops import draw_boxes, random_crops
from drifting_policy.imagenet.images import ImageSet
from drifting_policy.imagenet.stream import ImageStream
from drifting_policy.types import ConfigError, DatasetError


def pixels(count: int = 20, size: int = 4) -> ImageSet:
    """Image i is dark on the left and has the brightness 5 i on the right; its class is i modulo 3."""
    images = np.zeros((count, size, size, 1), np.uint8)
    images[:, :, size // 2 :] = 5 * np.arange(count)[:, None, None, None]
    labels = np.arange(count, dtype=np.int64) % 3
    return ImageSet(images=images, labels=labels, class_names=("a", "b", "c"), kind="pixels")


def latents(*, mirrored: bool) -> ImageSet:
    values = np.arange(12, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 2, 2), np.float32)
    return ImageSet(
        images=values,
        labels=np.zeros(12, np.int64),
        class_names=("a",),
        kind="latents",
        mirrored=-values if mirrored else None,
    )


def numbers(images: Tensor) -> list[int]:
    """Which images of `pixels` these are."""
    return [round(float((image.max() + 1) * 127.5 / 5)) for image in images]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    asked = [ImageStream(pixels(), batch_size=6, seed=seed, flips=True) for seed in (1, 1, 2)]
    forward = [asked[0].batch(step) for step in range(7)]
    backward = [asked[1].batch(step) for step in reversed(range(7))][::-1]
    for (images, labels), (others, names) in zip(forward, backward, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, names)
        assert labels.tolist() == [number % 3 for number in numbers(images)]
    assert not torch.equal(forward[0][0], asked[2].batch(0)[0])
    epoch = [number for images, _ in forward[:3] for number in numbers(images)]
    assert len(set(epoch)) == 18


def test_half_of_the_images_are_turned() -> None:
    images = torch.cat([ImageStream(pixels(200), batch_size=200, seed=0, flips=True).batch(step)[0] for step in range(5)])
    turned = (images[:, 0, 0, 0] > images[:, 0, 0, -1]).float()
    assert turned.mean() == pytest.approx(0.5, abs=0.05)
    plain, _ = ImageStream(pixels(), batch_size=20, seed=0, flips=False).batch(0)
    assert (plain[:, 0, 0, 0] == -1).all()
    halves = torch.cat([ImageStream(latents(mirrored=True), batch_size=12, seed=0, flips=True).batch(i)[0] for i in range(30)])
    assert (halves[:, 0, 0, 0] < 0).float().mean() == pytest.approx(11 / 24, abs=0.1)


def test_the_first_images_are_always_the_same_and_no_more_than_there_are() -> None:
    first = [ImageStream(pixels(), batch_size=3, seed=0, flips=True).first(count) for count in (7, 7, 100)]
    assert torch.equal(first[0][0], first[1][0])
    assert len(set(numbers(first[0][0]))) == 7
    assert len(first[2][1]) == 20


@pytest.mark.parametrize(
    ("images", "options", "error", "words"),
    [
        (pixels(), {"batch_size": 21}, DatasetError, "has 20 images; a batch of 21 cannot"),
        (pixels(), {"smallest_crop": 0.0}, ConfigError, r"smallest_crop must lie in \(0, 1\]"),
        (latents(mirrored=True), {"smallest_crop": 0.5}, ConfigError, "Latents cannot be cropped"),
        (latents(mirrored=False), {"flips": True}, DatasetError, "no latents of mirrored images; build one with flips=true"),
    ],
)
def test_impossible_streams_are_refused(images: ImageSet, options: dict[str, float], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        ImageStream(images, **{"batch_size": 3, "seed": 0, "flips": False} | options)  # type: ignore[arg-type]


def test_boxes_lie_inside_and_have_the_area_that_was_asked_for() -> None:
    left, top, width, height = draw_boxes(4000, smallest=0.2, generator=torch.Generator().manual_seed(0)).T
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    area, ratio = width * height, width / height
    assert 0.2 <= area.min() < 0.21 < 0.95 < area.max() <= 1
    assert 3 / 4 - 1e-5 <= ratio.min() < 0.77 < 1.3 < ratio.max() <= 4 / 3 + 1e-5
    assert ratio.log().mean() == pytest.approx(0, abs=0.02)


def test_a_crop_is_a_part_of_the_image() -> None:
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    plane = torch.stack([rows, columns])[None].expand(50, 2, 16, 16)
    generator = torch.Generator().manual_seed(0)
    boxes = draw_boxes(50, smallest=0.3, generator=torch.Generator().manual_seed(0))
    crops = random_crops(plane, smallest=0.3, generator=generator)
    for (left, top, width, height), crop in zip(boxes, crops, strict=True):
        # Bicubic interpolation keeps a plane; pixel i of the whole image lies at (i + 1/2) / 16.
        for values, start, extent in ((crop[0, :, 8], top, height), (crop[1, 8], left, width)):
            place = start + extent * (torch.arange(16) + 0.5) / 16
            expected = 2 * (place * 16 - 0.5) / 15 - 1
            torch.testing.assert_close(values[2:-2], expected[2:-2], atol=0.02, rtol=0)
    assert torch.equal(crops, random_crops(plane, smallest=0.3, generator=torch.Generator().manual_seed(0)))
    whole = random_crops(plane, smallest=1.0, generator=generator)
    torch.testing.assert_close(whole, plane, atol=1e-5, rtol=0)
