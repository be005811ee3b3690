"""What every sampler promises: a pure function of each row, in as many evaluations as it says."""

from typing import Any

import pytest
import torch
from torch import Tensor

from drifting_policy.models import Generator, MlpGenerator
from drifting_policy.samplers import SAMPLERS, Sampler

TRAINED = {"prediction": "epsilon", "timesteps": 100, "clip_sample": True}
RECIPES: list[tuple[str, dict[str, Any], int]] = [
    ("one_step", {}, 1),
    ("flow", {"steps": 1}, 1),
    ("flow", {"steps": 4}, 4),
    ("diffusion", {"scheduler": "ddpm", "steps": 100, **TRAINED}, 100),
    ("diffusion", {"scheduler": "ddpm", "steps": 7, **TRAINED, "prediction": "sample"}, 7),
    ("diffusion", {"scheduler": "ddim", "steps": 16, **TRAINED}, 16),
    ("diffusion", {"scheduler": "ddim", "steps": 10, **TRAINED, "clip_sample": False}, 10),
]
every_recipe = pytest.mark.parametrize(("name", "settings", "evaluations"), RECIPES, ids=str)


def build(name: str, settings: dict[str, Any]) -> tuple[Sampler, Generator]:
    """The sampler and a head that fits it, of random weights."""
    sampler: Sampler = SAMPLERS[name](**settings)
    torch.manual_seed(0)
    head = MlpGenerator(sample_shape=(4, 2), tokens=2, embed_dim=5, width=16, depth=1, time=sampler.timed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return sampler, head.requires_grad_(False)


def cond_and_noise(b: int = 3, g: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(b, 2, 5, generator=generator), torch.randn(b, g, 4, 2, generator=generator)


def test_every_registered_sampler_is_tested() -> None:
    assert {name for name, _, _ in RECIPES} == set(SAMPLERS)


@every_recipe
def test_it_evaluates_the_head_as_often_as_it_says(name: str, settings: dict[str, Any], evaluations: int) -> None:
    sampler, head = build(name, settings)
    calls: list[Tensor] = []
    head.register_forward_pre_hook(lambda module, given: calls.append(given[0]))
    chunk = sampler(head, *cond_and_noise())
    assert (chunk.shape, chunk.dtype) == ((3, 2, 4, 2), torch.float32)
    assert chunk.isfinite().all()
    assert len(calls) == sampler.evaluations == evaluations
    assert torch.equal(calls[0], cond_and_noise()[1])


@every_recipe
def test_rows_know_nothing_of_each_other(name: str, settings: dict[str, Any], evaluations: int) -> None:
    sampler, head = build(name, settings)
    cond, noise = cond_and_noise()
    chunk = sampler(head, cond, noise)
    for places in ([1], [2, 0], [1, 1, 1, 0]):
        torch.testing.assert_close(sampler(head, cond[places], noise[places]), chunk[places], rtol=1e-4, atol=1e-4)
    alone = sampler(head, cond.repeat_interleave(2, dim=0), noise.flatten(0, 1)[:, None])
    torch.testing.assert_close(alone.reshape(noise.shape), chunk, rtol=1e-4, atol=1e-4)
    moved = noise.clone()
    moved[1, 0, 2, 1] += 1.0
    changed = (sampler(head, cond, moved) - chunk).abs().amax(dim=(2, 3))
    assert changed[1, 0] > 1e-3
    changed[1, 0] = 0
    assert changed.max() < 1e-4


@every_recipe
def test_it_remembers_nothing_and_draws_nothing(name: str, settings: dict[str, Any], evaluations: int) -> None:
    sampler, head = build(name, settings)
    cond, noise = cond_and_noise()
    first, state, given = sampler(head, cond, noise), torch.get_rng_state(), noise.clone()
    sampler(head, *cond_and_noise(5, 1))
    assert torch.equal(sampler(head, cond, noise), first)
    assert torch.equal(build(name, settings)[0](head, cond, noise), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise, given)
    assert sampler(head, cond[:0], noise[:0]).shape == (0, 2, 4, 2)
