"""What every registered objective promises; a new one is tested by being registered and having a configuration."""

import pytest
import torch
from torch import Tensor, nn

from drifting_policy.config import NamedConfig, arguments
from drifting_policy.models import MlpGenerator
from drifting_policy.objectives import OBJECTIVES, Objective

every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def objective(name: str) -> Objective:
    (config,) = [node() for node in NamedConfig.__subclasses__() if node.name == name]
    result: Objective = OBJECTIVES[name](**arguments(config))
    return result


def parts(b: int = 8) -> tuple[MlpGenerator, nn.Module, Tensor, Tensor]:
    """A tiny head, an encoder, observations and demonstrated chunks."""
    torch.manual_seed(0)
    head = MlpGenerator(sample_shape=(4, 2), tokens=2, embed_dim=8, width=64, depth=1)
    return head, nn.Linear(3, 8), torch.randn(b, 2, 3), torch.rand(b, 4, 2) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_objective
def test_the_generator_alone_decides_the_loss(name: str) -> None:
    head, encoder, obs, action = parts()
    state = torch.get_rng_state()
    first, again = (objective(name).loss(head, encoder(obs), action, seeded(7)) for _ in range(2))
    assert torch.equal(first.value, again.value)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.metrics.keys() == again.metrics.keys()
    assert all(torch.equal(value, again.metrics[key]) for key, value in first.metrics.items())


@every_objective
def test_the_gradient_reaches_head_and_encoder_but_no_metric(name: str) -> None:
    head, encoder, obs, action = parts()
    loss = objective(name).loss(head, encoder(obs), action, seeded())
    loss.value.backward()
    assert head.output.weight.grad is not None
    assert head.output.weight.grad.abs().max() > 0
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in encoder.parameters())
    assert not any(value.requires_grad for value in loss.metrics.values())
    assert {value.shape for value in [loss.value, *loss.metrics.values()]} == {()}


@every_objective
def test_autocast_does_not_reach_the_loss(name: str) -> None:
    head, encoder, obs, action = parts()
    plain = objective(name).loss(head, encoder(obs), action, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cond = encoder(obs)
        loss = objective(name).loss(head, cond, action, seeded())
    assert cond.dtype == torch.bfloat16
    assert {value.dtype for value in [loss.value, *loss.metrics.values()]} == {torch.float32}
    torch.testing.assert_close(loss.metrics["sample_error"], plain.metrics["sample_error"], rtol=0.02, atol=0)
    loss.value.backward()
    assert all(parameter.dtype == torch.float32 for parameter in head.parameters())


@every_objective
def test_one_batch_can_be_learned_by_heart(name: str) -> None:
    head, encoder, obs, action = parts(b=4)
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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_noise_of_the_trained_policy_is_known(name: str) -> None:
    assert 0 <= objective(name).noise_scale <= 1
