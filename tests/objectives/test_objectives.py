"""What every registered objective promises; a new one is tested by being registered and having a configuration."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drifting_policy.config import NamedConfig, arguments
from drifting_policy.models import MlpGenerator
from drifting_policy.objectives import OBJECTIVES, Objective
from drifting_policy.samplers import SAMPLERS, Sampler
from drifting_policy.types import ConfigError

every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def objective(name: str, **changes: Any) -> Objective:
    (config,) = [node() for node in NamedConfig.__subclasses__() if node.name == name]
    result: Objective = OBJECTIVES[name](**(arguments(config) | changes))
    return result


def sampler(settings: Mapping[str, Any]) -> Sampler:
    result: Sampler = SAMPLERS[settings["name"]](**{key: value for key, value in settings.items() if key != "name"})
    return result


def parts(name: str, b: int = 8) -> tuple[MlpGenerator, nn.Module, Tensor, Tensor]:
    """A tiny head for an objective, an encoder, observations and demonstrated chunks."""
    torch.manual_seed(0)
    head = MlpGenerator(sample_shape=(4, 2), tokens=2, embed_dim=8, width=64, depth=1, time=OBJECTIVES[name].timed)
    return head, nn.Linear(3, 8), torch.randn(b, 2, 3), torch.rand(b, 4, 2) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_objective
def test_the_generator_alone_decides_the_loss(name: str) -> None:
    head, encoder, obs, action = parts(name)
    state = torch.get_rng_state()
    first, again = (objective(name).loss(head, encoder(obs), action, seeded(7)) for _ in range(2))
    assert torch.equal(first.value, again.value)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.metrics.keys() == again.metrics.keys()
    assert all(torch.equal(value, again.metrics[key]) for key, value in first.metrics.items())


@every_objective
def test_noise_is_drawn_where_training_noise_says_so(name: str) -> None:
    head, encoder, obs, action = parts(name)
    generator = seeded()
    before = generator.get_state()
    objective(name).loss(head, encoder(obs), action, generator)
    assert torch.equal(generator.get_state(), before) == (objective(name).training_noise == 0)


@every_objective
def test_the_gradient_reaches_head_and_encoder_but_no_metric(name: str) -> None:
    head, encoder, obs, action = parts(name)
    loss = objective(name).loss(head, encoder(obs), action, seeded())
    loss.value.backward()
    assert head.output.weight.grad is not None
    assert head.output.weight.grad.abs().max() > 0
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in encoder.parameters())
    assert not any(value.requires_grad for value in loss.metrics.values())
    assert {value.shape for value in [loss.value, *loss.metrics.values()]} == {()}


@every_objective
def test_autocast_does_not_reach_the_loss(name: str) -> None:
    head, encoder, obs, action = parts(name)
    plain = objective(name).loss(head, encoder(obs), action, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cond = encoder(obs)
        loss = objective(name).loss(head, cond, action, seeded())
    assert cond.dtype == torch.bfloat16
    assert {value.dtype for value in [loss.value, *loss.metrics.values()]} == {torch.float32}
    torch.testing.assert_close(loss.metrics["sample_error"], plain.metrics["sample_error"], rtol=0.02, atol=0)
    loss.value.backward()
    assert all(parameter.dtype == torch.float32 for parameter in head.parameters())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not OBJECTIVES[name].timed])
def test_one_batch_can_be_learned_by_heart(name: str) -> None:
    head, encoder, obs, action = parts(name, b=4)
    optimizer = torch.optim.Adam([*head.parameters(), *encoder.parameters()], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 150)
    errors, learned = [], objective(name)
    for step in range(150):
        loss = learned.loss(head, encoder(obs), action, seeded(step))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        schedule.step()
        errors.append(loss.metrics["sample_error"].item())
    assert 0.4 < errors[0] < 0.8
    assert errors[-1] < errors[0] / 4


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name].timed])
def test_samples_of_a_learned_batch_are_its_demonstrations(name: str) -> None:
    head, encoder, obs, action = parts(name, b=4)
    learned = objective(name, samples=16)
    optimizer = torch.optim.Adam([*head.parameters(), *encoder.parameters()], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 400)
    noise = learned.noise_scale * torch.randn(4, 32, 4, 2, generator=seeded(1))

    @torch.no_grad()
    def error() -> float:
        chunks = sampler(learned.sampler)(head, encoder(obs), noise)
        return float((chunks - action[:, None]).square().mean().sqrt())

    before = error()
    for step in range(400):
        optimizer.zero_grad()
        learned.loss(head, encoder(obs), action, seeded(step)).value.backward()
        optimizer.step()
        schedule.step()
    assert before > 0.4
    assert error() < before / 4


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flow", {}),
        ("flow", {"time_sampling": "biased"}),
        ("diffusion", {}),
        ("diffusion", {"scheduler": "ddim", "steps": 10, "prediction": "sample"}),
    ],
)
def test_of_two_modes_both_are_drawn(name: str, changes: dict[str, Any]) -> None:
    """Regression predicts the middle of them, see test_regression."""
    head, _, _, _ = parts(name)
    cond, learned = torch.zeros(64, 2, 8), objective(name, samples=4, **changes)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 400)
    for step in range(400):
        side = 2.0 * torch.randint(0, 2, (64, 1, 1), generator=seeded(1000 + step)) - 1
        optimizer.zero_grad()
        learned.loss(head, cond, side.expand(64, 4, 2), seeded(step)).value.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        chunks = sampler(learned.sampler)(head, cond[:1], torch.randn(1, 256, 4, 2, generator=seeded()))[0]
    side = chunks.mean(dim=(1, 2)).sign()[:, None, None]
    assert 0.3 < (side > 0).float().mean() < 0.7
    assert (chunks - side).square().mean().sqrt() < 0.25


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("diffusion", {"samples": 0}, "at least 1 sample per observation; got 0"),
        ("diffusion", {"prediction": "velocity"}, r"Unknown prediction 'velocity'; choose one of \['epsilon', 'sample'\]"),
        ("diffusion", {"timesteps": 0, "steps": 0}, "between 1 and 0 steps"),
        ("diffusion", {"scheduler": "euler"}, r"Unknown scheduler 'euler'; choose one of \['ddim', 'ddpm'\]"),
        ("diffusion", {"steps": 101}, "between 1 and 100 steps, the timesteps of its training; got 101"),
        ("diffusion", {"steps": 0}, "got 0"),
        ("flow", {"samples": 0}, "at least 1 sample per observation; got 0"),
        ("flow", {"steps": 0}, "at least 1 step from noise to chunk; got 0"),
        ("flow", {"time_sampling": "cosine"}, r"Unknown time_sampling 'cosine'; choose one of \['biased', 'uniform'\]"),
        ("flow", {"time_sampling": "biased", "time_bias": 0.5}, "time_bias must be a number of at least 1; got 0.5"),
        ("flow", {"time_bias": float("nan")}, "at least 1; got nan"),
    ],
)
def test_impossible_options_of_the_baselines_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        objective(name, **changes)


@every_objective
def test_objective_and_sampler_agree_on_the_time(name: str) -> None:
    assert sampler(objective(name).sampler).timed == objective(name).timed


@every_objective
def test_the_noise_of_the_trained_policy_is_known(name: str) -> None:
    assert 0 <= objective(name).noise_scale <= 1
