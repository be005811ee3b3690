"""Euler's method on velocities whose paths are known, against closed forms."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.samplers.flow import FlowSampler

COND = torch.zeros(1, 1, 1)


class Field(Generator):
    """A head that is a given function of sample and time."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.times = function, list[float]()

    def forward(self, noise: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        assert time is not None
        self.times.append(time[0].item())
        return self.function(noise, time[:, None, None, None])


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_straight_paths_end_at_the_data_after_any_number_of_steps(steps: int) -> None:
    noise, data = draw(1, 5, 4, 2), draw(2, 5, 4, 2)[1:]
    field = Field(lambda x, time: data - noise)
    torch.testing.assert_close(FlowSampler(steps=steps)(field, COND, noise), data, rtol=1e-12, atol=1e-12)
    assert field.times == pytest.approx([step / steps for step in range(steps)])


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_the_conditional_field_of_one_datum_is_exact(steps: int) -> None:
    """E[data - noise | x] = (data - x) / (1 - t) where there is a single datum: straight, though it is told x alone."""
    noise, data = draw(1, 5, 4, 2), draw(2, 5, 4, 2)[1:]
    chunk = FlowSampler(steps=steps)(Field(lambda x, time: (data - x) / (1 - time)), COND, noise)
    torch.testing.assert_close(chunk, data, rtol=1e-12, atol=1e-12)


def gaussian(mean: float, std: float) -> Field:
    """E[data - noise | x_t = x] for data from N(mean, std^2): linear regression of one Gaussian on another."""
    return Field(
        lambda x, t: mean + (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * (x - t * mean),
    )


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-1.0, 2.0)])
def test_the_exact_field_of_a_gaussian_reproduces_its_mean_and_deviation(mean: float, std: float) -> None:
    """The map is affine, so two noises tell mean and deviation; the exact flow is mean + std * noise, approached as 1/steps."""
    errors = []
    for steps in (100, 200, 400):
        zero, one = FlowSampler(steps=steps)(gaussian(mean, std), COND, torch.tensor([0.0, 1.0]).double().view(1, 2, 1, 1))[0]
        assert zero.item() == pytest.approx(mean, abs=1e-12)
        errors.append(abs((one - zero).item() - std))
    assert errors[2] < 0.01 * std
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_one_step_of_it_is_the_mean() -> None:
    chunk = FlowSampler(steps=1)(gaussian(0.3, 0.5), COND, draw(1, 6, 4, 2))
    torch.testing.assert_close(chunk, torch.full_like(chunk, 0.3))
