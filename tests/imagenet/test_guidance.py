"""The distribution of guidance scales, and the weight that brings a scale about, against the numbers of the release."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drifting_policy.drift import drift
from drifting_policy.imagenet.guidance import draw_scales, negative_weight, scales_from_uniform
from drifting_policy.types import ConfigError

LEVELS = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
EXACT = {3.0: [1.0243, 1.1429, 1.3720, 1.8353, 3.0237], 5.0: [1.0129, 1.0742, 1.1880, 1.4101, 2.0772]}
OPTIONS: dict[str, Any] = {"low": 1.0, "high": 4.0, "power": 3.0, "plain_share": 0.0}


@pytest.mark.parametrize("case", range(5))
def test_scales_are_those_of_the_release(shared: Path, case: int) -> None:
    arrays = np.load(shared / "golden" / "training_pieces.npz")
    entry = json.loads((shared / "golden" / "training_tiny.json").read_text())["pieces"][f"cfg/{case}"]
    scales = scales_from_uniform(
        torch.from_numpy(arrays[f"cfg/{case}/u"]),
        torch.from_numpy(arrays[f"cfg/{case}/u_nocfg"]),
        low=entry["cfg_min"],
        high=entry["cfg_max"],
        power=entry["neg_cfg_pw"],
        plain_share=entry["no_cfg_frac"],
    )
    np.testing.assert_allclose(scales.numpy(), arrays[f"cfg/{case}/cfg"], rtol=2e-6)
    assert (scales == 1).double().mean() == entry["share_equal_one"]


@pytest.mark.parametrize("power", EXACT)
def test_quantiles(power: float) -> None:
    scales = scales_from_uniform(LEVELS, torch.ones_like(LEVELS), **OPTIONS | {"power": power})
    np.testing.assert_allclose(scales.numpy(), EXACT[power], atol=6e-5)


def test_draws_follow_the_density_and_the_generator() -> None:
    source, options = torch.Generator().manual_seed(3), OPTIONS | {"plain_share": 0.25}
    scales = draw_scales(20_000, **options, generator=source)
    assert (scales == 1).float().mean() == pytest.approx(0.25, abs=0.015)
    guided = scales[scales > 1]
    assert 1 < guided.min() < guided.max() <= 4
    # The share above 2 of a density proportional to alpha^-3 on [1, 4].
    assert (guided > 2).float().mean() == pytest.approx((2**-2 - 4**-2) / (1 - 4**-2), abs=0.015)
    assert torch.equal(scales, draw_scales(20_000, **options, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(scales, draw_scales(20_000, **options, generator=source))


def test_weights_are_those_of_the_release(shared: Path) -> None:
    arrays = np.load(shared / "golden" / "training_pieces.npz")
    scales = torch.from_numpy(arrays["uncond_w/cfg"])
    for generated, unconditional in ((64, 16), (64, 32), (8, 0), (1, 4), (4, 3)):
        weight = negative_weight(scales, generated=generated, unconditional=unconditional)
        np.testing.assert_allclose(weight.numpy(), arrays[f"uncond_w/gen{generated}_unc{unconditional}"], rtol=1e-12)


def test_a_weight_gives_unconditional_images_their_share_of_the_negatives() -> None:
    weight = negative_weight(torch.tensor([1.0, 2.5]), generated=9, unconditional=4)
    share = 4 * weight / (8 + 4 * weight)  # gamma of the paper, where alpha = 1 / (1 - gamma)
    torch.testing.assert_close(1 / (1 - share), torch.tensor([1.0, 2.5]))
    source = torch.Generator().manual_seed(0)
    x, pos, neg = (torch.randn(1, count, 3, generator=source) for count in (9, 5, 4))
    pulls = [drift(x, pos, neg, neg_weight=w.expand(1, 4)).velocity for w in weight]
    assert (pulls[0] - pulls[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low": 0.0}, "0 < low <= high; got low=0.0"),
        ({"high": 0.5}, "got low=1.0 and high=0.5"),
        ({"power": float("nan")}, "power must be a finite number"),
        ({"plain_share": 1.1}, "plain_share must lie in"),
    ],
)
def test_distributions_that_do_not_exist_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw_scales(3, **OPTIONS | change, generator=torch.Generator())
