"""Guidance in training: how strongly each label is guided, and the weight of unconditional images that brings it about."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.types import ConfigError


def draw_scales(
    count: int, *, low: float, high: float, power: float, plain_share: float, generator: torch.Generator
) -> Float[Tensor, " b"]:
    """`count` guidance scales alpha for the labels of a step (arXiv 2602.04770, appendix A.7 and Table 8).

    Their density is proportional to alpha^-power on [low, high]; a share of them, on average, is 1: not guided at all.

    Args:
        count: How many labels there are.
        low: The smallest scale, above 0.
        high: The largest scale.
        power: How much more often small scales are drawn than large ones; 0 draws them evenly.
        plain_share: The probability in [0, 1] that a label is not guided.
        generator: Where two numbers for each label come from; the scales are on its device.

    Raises:
        ConfigError: a bound, power or share out of range.
    """
    check_scales(low=low, high=high, power=power, plain_share=plain_share)
    uniform = torch.rand(2, count, generator=generator, device=generator.device)
    return scales_from_uniform(uniform[0], uniform[1], low=low, high=high, power=power, plain_share=plain_share)


def scales_from_uniform(
    guided: Float[Tensor, " b"],
    plain: Float[Tensor, " b"],
    *,
    low: float,
    high: float,
    power: float,
    plain_share: float,
) -> Float[Tensor, " b"]:
    """The scales of numbers in [0, 1): the inverse of the distribution function at `guided`, or 1 where `plain` is low."""
    exponent = 1 - power
    if abs(exponent) < 1e-6:
        scales = low ** (1 - guided) * high**guided
    else:
        scales = (low**exponent + guided * (high**exponent - low**exponent)) ** (1 / exponent)
    return torch.where(plain < plain_share, torch.ones_like(scales), scales)


def negative_weight(scales: Float[Tensor, " b"], *, generated: int, unconditional: int) -> Float[Tensor, " b"]:
    """The weight of each of `unconditional` real images among the negatives of a label, so that it is guided by its scale.

    w = (alpha - 1) (g - 1) / n for g generated images (appendix A.7); without unconditional images it is of no use.
    """
    return (scales - 1) * (generated - 1) / max(1, unconditional)


def check_scales(*, low: float, high: float, power: float, plain_share: float) -> None:
    """Refuse a distribution of guidance scales that does not exist.

    Raises:
        ConfigError: names the setting.
    """
    if not 0 < low <= high < math.inf:
        raise ConfigError(f"Guidance scales need 0 < low <= high; got low={low} and high={high}.")
    if not -math.inf < power < math.inf:
        raise ConfigError(f"power must be a finite number; got {power}.")
    if not 0 <= plain_share <= 1:
        raise ConfigError(f"plain_share must lie in [0, 1]; got {plain_share}.")
