"""Crops and colours: what stays, what is drawn, and the hue of the standard library."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drifting_policy.models.augment import LUMA, center_crop, jitter_colours, random_crop, turn_hue

ALL = ("brightness", "contrast", "saturation", "hue")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(b: int = 3, to: int = 2, h: int = 6, w: int = 5, c: int = 3, *, seed: int = 1) -> Tensor:
    return torch.rand(b, to, h, w, c, generator=seeded(seed))


def places(b: int, to: int, h: int, w: int) -> Tensor:
    """Images whose channels are the row and the column of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([rows, columns], dim=-1).float().expand(b, to, h, w, 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**30))
def test_crops_are_rectangles_at_one_place_per_window(h: int, w: int, more_h: int, more_w: int, seed: int) -> None:
    whole = places(4, 3, h + more_h, w + more_w)
    for crop in (random_crop(whole, h, w, seeded(seed)), center_crop(whole, h, w)):
        corners = crop[:, :1, :1, :1]
        assert torch.equal(crop, places(4, 3, h, w) + corners)
    assert torch.equal(center_crop(whole, h, w)[0, 0, 0, 0], torch.tensor([more_h // 2, more_w // 2]).float())


def test_every_place_of_a_crop_is_equally_likely() -> None:
    corners = random_crop(places(6000, 1, 5, 4), 3, 3, seeded())[:, 0, 0, 0].int().tolist()
    counts = [corners.count(list(corner)) for corner in itertools.product(range(3), range(2))]
    assert sum(counts) == 6000
    assert all(abs(count - 1000) < 4 * 1000**0.5 for count in counts)


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_depends_on_the_generator_alone_and_frames_change_alike(name: str) -> None:
    images = noise(b=4)[:, :1].expand(-1, 3, -1, -1, -1)
    state = torch.get_rng_state()
    first, again, other = (jitter_colours(images, seeded(seed), **{name: 0.4}) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    torch.testing.assert_close(first, first[:, :1].expand_as(first))
    assert first.min() >= -1e-6
    assert first.max() <= 1 + 1e-6
    alone = jitter_colours(images[:1], seeded(5), **{name: 0.4})  # windows do not mix
    torch.testing.assert_close(first[:1], alone)


def test_without_strength_nothing_is_changed_or_drawn() -> None:
    generator = seeded()
    assert torch.equal(jitter_colours(noise(), generator), noise())
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=seeded()))
    for name in ALL:
        torch.testing.assert_close(jitter_colours(noise(), seeded(), **{name: 1e-9}), noise(), atol=1e-6, rtol=0)


def test_each_factor_does_what_its_name_says() -> None:
    images, luma = noise(), torch.tensor(LUMA)
    draw = (2 * torch.rand(3, generator=seeded()) - 1)[:, None, None, None, None] * 0.3
    torch.testing.assert_close(jitter_colours(images, seeded(), brightness=0.3), (images * (1 + draw)).clamp(0, 1))
    gray = (images * luma).sum(-1, keepdim=True)
    saturated = jitter_colours(images * 0.2 + 0.4, seeded(), saturation=0.3)  # far from the borders
    torch.testing.assert_close((saturated * luma).sum(-1, keepdim=True), 0.2 * gray + 0.4)
    contrasted = jitter_colours(images * 0.2 + 0.4, seeded(), contrast=0.3)
    means = [(each * luma).sum(-1).mean(dim=(1, 2, 3)) for each in (contrasted, images * 0.2 + 0.4)]
    torch.testing.assert_close(*means)
    torch.testing.assert_close(contrasted.std(dim=(1, 2, 3)), 0.2 * images.std(dim=(1, 2, 3)) * (1 + draw[:, 0, 0, 0]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 255), min_size=3, max_size=3), st.floats(-1, 1))
def test_hue_turns_as_in_colorsys(pixel: list[int], turns: float) -> None:
    colour = np.array(pixel) / 255
    turned = turn_hue(
        torch.tensor(colour, dtype=torch.float64).reshape(1, 1, 1, 1, 3).float(), torch.full((1, 1, 1, 1, 1), turns)
    )
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    np.testing.assert_allclose(turned.flatten(), colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), atol=2e-5)
