"""The diffusion loss: samples as diffusers makes them, targets as asked for, no loss for the oracle."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.objectives.diffusion import DiffusionObjective


class Head(Generator):
    """A head that is a given function of sample and timestep, and remembers what it was given."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, noise: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        assert time is not None
        self.x, self.steps = noise, (100 * time).round().long()
        return self.function(noise, self.steps)


def diffusion(**changes: Any) -> DiffusionObjective:
    options = {"samples": 1, "prediction": "epsilon", "timesteps": 100, "clip_sample": True, "scheduler": "ddpm", "steps": 100}
    return DiffusionObjective(**(options | changes))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def action(b: int = 6) -> Tensor:
    return torch.rand(b, 4, 2, generator=seeded(1)) * 2 - 1


def test_samples_are_noised_as_diffusers_noises_them() -> None:
    head, data, objective = Head(lambda x, steps: 0 * x), action(), diffusion(samples=3)
    loss = objective.loss(head, torch.zeros(6, 1, 1), data, seeded(5))
    noise = torch.randn((6, 3, 4, 2), generator=seeded(5))
    theirs = objective.schedule.add_noise(
        data[:, None].expand(6, 3, 4, 2).flatten(0, 1), noise.flatten(0, 1), head.steps.flatten()
    )
    torch.testing.assert_close(head.x.flatten(0, 1), theirs)
    torch.testing.assert_close(loss.value, noise.square().mean())  # what is missed by a head that says nothing


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_without_error_there_is_no_loss(prediction: str, clip_sample: bool) -> None:
    data, objective = action(), diffusion(samples=20, prediction=prediction, clip_sample=clip_sample)

    def oracle(x: Tensor, steps: Tensor) -> Tensor:
        share = objective.schedule.alphas_cumprod[steps][..., None, None]
        return data[:, None].expand_as(x) if prediction == "sample" else (x - share.sqrt() * data[:, None]) / (1 - share).sqrt()

    loss = objective.loss(Head(oracle), torch.zeros(6, 1, 1), data, seeded())
    assert loss.value < 1e-6
    assert loss.metrics["sample_error"] < 1e-2


def test_every_timestep_is_trained_alike() -> None:
    head = Head(lambda x, steps: 0 * x)
    diffusion(samples=4000).loss(head, torch.zeros(6, 1, 1), action(), seeded())
    counts = torch.bincount(head.steps.flatten(), minlength=100)
    assert len(counts) == 100
    assert counts.min() > 240 * 0.7
    assert counts.max() < 240 * 1.3


def test_the_sample_error_is_clipped_as_sampling_is() -> None:
    head, data = Head(lambda x, steps: 5 + 0 * x), action()
    clipped, free = (
        diffusion(prediction="sample", clip_sample=clip).loss(head, torch.zeros(6, 1, 1), data, seeded())
        for clip in (True, False)
    )
    torch.testing.assert_close(clipped.value, free.value)
    torch.testing.assert_close(free.metrics["sample_error"], (5 - data).square().mean().sqrt())
    torch.testing.assert_close(clipped.metrics["sample_error"], (1 - data).square().mean().sqrt())
