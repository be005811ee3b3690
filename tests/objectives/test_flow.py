"""The flow-matching loss against its closed form for Gaussian data, and the distribution of its times."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.objectives.flow import FlowObjective

STD = 0.5


class Head(Generator):
    """A head that is a given function of sample and time, and remembers what it was given."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, noise: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        assert time is not None
        self.x, self.t = noise, time
        return self.function(noise, time[..., None, None])


def best(x: Tensor, t: Tensor) -> Tensor:
    """E[data - noise | x_t = x] for data from N(0, STD^2)."""
    return (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2) * x


def flow(time_sampling: str = "uniform", *, time_bias: float = 2.0, samples: int = 1) -> FlowObjective:
    return FlowObjective(samples=samples, time_sampling=time_sampling, time_bias=time_bias, steps=10)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def value(objective: FlowObjective, function: Callable[[Tensor, Tensor], Tensor]) -> float:
    data = STD * torch.randn(50_000, 4, 1, generator=seeded(1))
    return objective.loss(Head(function), torch.zeros(50_000, 1, 1), data, seeded()).value.item()


def test_the_minimum_is_the_conditional_mean() -> None:
    """At time t it is s^2 / (t^2 s^2 + (1 - t)^2), whose integral over uniform t is s pi / 2; an offset adds its square."""
    lowest = value(flow(), best)
    assert lowest == pytest.approx(STD * math.pi / 2, rel=0.01)
    assert value(flow(), lambda x, t: best(x, t) + 0.3) == pytest.approx(lowest + 0.09, rel=0.01)
    assert value(flow(), lambda x, t: 1.1 * best(x, t)) > lowest + 0.002
    assert value(flow(), lambda x, t: 0.9 * best(x, t)) > lowest + 0.002


def test_biased_times_weigh_the_minimum() -> None:
    t = (torch.arange(100_000).double() + 0.5) / 100_000
    density = 3 * (1 - t) ** 2
    expected = (density * STD**2 / (t**2 * STD**2 + (1 - t) ** 2)).mean().item()
    assert value(flow("biased", time_bias=3.0), best) == pytest.approx(expected, rel=0.01)


def test_without_error_there_is_no_loss() -> None:
    data = torch.randn(5, 4, 2, generator=seeded(1))
    head = Head(lambda x, t: (data[:, None] - x) / (1 - t))  # of all noises, the one that is in x
    loss = flow(samples=3).loss(head, torch.zeros(5, 1, 1), data, seeded())
    assert head.x.shape == (5, 3, 4, 2)
    assert head.t.shape == (5, 3)
    assert loss.value < 1e-8
    assert loss.metrics["sample_error"] < 1e-5


@pytest.mark.parametrize(("sampling", "bias", "power"), [("uniform", 5.0, 1.0), ("biased", 1.0, 1.0), ("biased", 3.0, 3.0)])
def test_times_follow_their_distribution(sampling: str, bias: float, power: float) -> None:
    times = flow(sampling, time_bias=bias).times((200, 100), seeded())
    assert times.min() >= 0
    assert times.max() <= 1
    for quantile in (0.1, 0.5, 0.8):
        assert (times < quantile).float().mean().item() == pytest.approx(1 - (1 - quantile) ** power, abs=0.015)
