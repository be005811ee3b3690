"""The U-Net has the size of Diffusion Policy's, keeps the number of steps, and says which horizons it cannot halve."""

from typing import Any

import pytest
import torch

from drifting_policy.config import UnetConfig, arguments
from drifting_policy.models import UnetGenerator
from drifting_policy.models.unet1d import FilmBlock
from drifting_policy.types import ConfigError


def unet(t: int = 8, d: int = 2, **options: Any) -> UnetGenerator:
    small = {"channels": [8, 16, 24], "kernel": 5, "groups": 4, "film_dim": 16}
    return UnetGenerator(sample_shape=(t, d), tokens=2, embed_dim=3, **(small | options))


def test_default_size_is_that_of_diffusion_policy() -> None:
    with torch.device("meta"):
        default = UnetGenerator(sample_shape=(16, 2), tokens=2, embed_dim=64, **arguments(UnetConfig()))
    assert 60e6 < sum(parameter.numel() for parameter in default.parameters()) < 70e6


@pytest.mark.parametrize(
    ("t", "options"),
    [(4, {}), (12, {}), (16, {}), (8, {"kernel": 1}), (8, {"kernel": 9}), (1, {"channels": [8]}), (2, {"channels": [8, 12]})],
)
def test_the_number_of_steps_survives(t: int, options: dict[str, Any]) -> None:
    assert unet(t, **options)(torch.ones(2, 3, t, 2), torch.ones(2, 2, 3)).shape == (2, 3, t, 2)


@pytest.mark.parametrize(
    ("t", "options", "words"),
    [
        (6, {}, "halves the prediction horizon 2 times: 6 must be a multiple of 4. Choose another pred_horizon or fewer"),
        (1, {}, "1 must be a multiple of 4"),
        (7, {"channels": [8, 8]}, "1 times: 7 must be a multiple of 2"),
        (8, {"channels": []}, r"at least one entry of channels, each a multiple of 4; got \[\]"),
        (8, {"channels": [8, 18]}, r"each a multiple of 4; got \[8, 18\]"),
        (8, {"kernel": 4}, "kernel must be odd, so that convolutions keep the number of steps; got 4"),
    ],
)
def test_what_it_cannot_build_is_refused(t: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        unet(t, **options)


def test_every_level_sees_the_skip_of_its_own_resolution() -> None:
    network = unet()
    lengths: list[tuple[int, int]] = []
    for blocks in network.up:
        first = next(iter(blocks.children()))
        first.register_forward_hook(lambda module, inputs, output: lengths.append((inputs[0].shape[1], output.shape[2])))
    network(torch.ones(1, 1, 8, 2), torch.ones(1, 2, 3))
    assert lengths == [(24 + 16, 4), (16 + 8, 8)]


def test_film_scales_and_shifts_each_row_by_its_own_condition() -> None:
    block = FilmBlock(inputs=3, outputs=4, cond_dim=2, kernel=3, groups=2)
    x, cond = torch.randn(6, 3, 5), torch.randn(2, 2)
    result = block(x, cond, 3)
    for row in range(6):
        scale, shift = block.film(torch.nn.functional.mish(cond[row // 3])).chunk(2)
        hidden = block.first(x[row : row + 1]) * (1 + scale[:, None]) + shift[:, None]
        torch.testing.assert_close(result[row], (block.second(hidden) + block.skip(x[row : row + 1]))[0])
