"""What every registered action head promises; a new head is tested by being registered and having a configuration."""

from typing import Any

import pytest
import torch
from torch import Tensor

from drifting_policy.config import NamedConfig, arguments
from drifting_policy.models import ENCODERS, GENERATORS, Generator
from drifting_policy.types import ArraySpec

SMALL = {"width": 32, "depth": 2, "heads": 2, "channels": [16, 32], "groups": 4, "film_dim": 16}
T, D, TOKENS, EMBED = 8, 3, 2, 5
every_head = pytest.mark.parametrize("name", GENERATORS)


def head(name: str, *, wild: float = 0.0) -> Generator:
    """A head with its configured options, made small; `wild` perturbs the weights, for branches that begin at zero."""
    (config,) = [node() for node in NamedConfig.__subclasses__() if node.name == name]
    options: dict[str, Any] = arguments(config)
    torch.manual_seed(0)
    small = {key: SMALL.get(key, value) for key, value in options.items()}
    result: Generator = GENERATORS[name](sample_shape=(T, D), tokens=TOKENS, embed_dim=EMBED, **small)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter += wild * torch.randn(parameter.shape)
    return result


def noise_and_cond(b: int = 3, g: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, g, T, D, generator=generator), torch.randn(b, TOKENS, EMBED, generator=generator)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@every_head
@pytest.mark.parametrize(("b", "g"), [(0, 1), (1, 1), (2, 1), (3, 5), (1, 16)])
def test_chunks_have_the_shape_of_their_noise(name: str, b: int, g: int) -> None:
    noise, cond = noise_and_cond(b, g)
    chunk = head(name)(noise, cond)
    assert chunk.shape == (b, g, T, D)
    assert chunk.dtype == torch.float32
    assert head(name).sample_shape == (T, D)


@every_head
def test_fresh_chunks_are_not_larger_than_the_data(name: str) -> None:
    chunk = head(name)(*noise_and_cond(64, 8))
    assert chunk.square().mean().sqrt() < 1.5
    assert chunk.mean().abs() < 0.5
    assert chunk.abs().max() < 10


@every_head
def test_many_samples_of_a_condition_are_single_samples_of_its_copies(name: str) -> None:
    network, (noise, cond) = head(name, wild=0.1), noise_and_cond()
    single = network(noise.flatten(0, 1)[:, None], cond.repeat_interleave(4, dim=0))
    assert_close(network(noise, cond), single.reshape(noise.shape))
    order = torch.tensor([2, 0, 3, 1])
    assert_close(network(noise[:, order], cond), network(noise, cond)[:, order])
    assert_close(network(noise.flip(0), cond.flip(0)), network(noise, cond).flip(0))


@every_head
def test_a_sample_hears_all_of_its_own_noise_and_condition_and_nothing_else(name: str) -> None:
    network, (noise, cond) = head(name, wild=0.1), noise_and_cond()
    network(noise.requires_grad_(), cond.requires_grad_())[1, 2].square().sum().backward()
    assert noise.grad is not None
    assert cond.grad is not None
    assert (noise.grad[1, 2] != 0).all()
    assert (cond.grad[1] != 0).all()
    noise.grad[1, 2], cond.grad[1] = 0, 0
    assert noise.grad.abs().max() == 0
    assert cond.grad.abs().max() == 0


@every_head
def test_steps_and_tokens_are_told_apart(name: str) -> None:
    network, (noise, cond) = head(name, wild=0.1), noise_and_cond()
    level = torch.ones_like(noise)
    assert (network(level, cond)[:, :, 1:] - network(level, cond)[:, :, :-1]).abs().amax(dim=(0, 1, 3)).min() > 1e-3
    assert (network(noise, cond.flip(1)) - network(noise, cond)).abs().max() > 1e-3


@every_head
def test_training_mode_draws_nothing_and_changes_nothing(name: str) -> None:
    network, (noise, cond) = head(name, wild=0.1).train(), noise_and_cond()
    state, buffers = torch.get_rng_state(), {key: value.clone() for key, value in network.state_dict().items()}
    first = network(noise, cond)
    assert torch.equal(network(noise, cond), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[key]) for key, value in network.state_dict().items())
    assert_close(network.eval()(noise, cond), first)


@every_head
def test_float64_agrees_and_bfloat16_comes_near(name: str) -> None:
    network, (noise, cond) = head(name), noise_and_cond()
    chunk = network(noise, cond)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(network(noise, cond).float(), chunk, 0.1)
    assert_close(network.double()(noise.double(), cond.double()).float(), chunk)


@every_head
def test_after_two_updates_every_parameter_of_head_and_encoder_learns(name: str) -> None:
    network, (noise, _) = head(name), noise_and_cond(8)
    encoder = ENCODERS["state"](observations={"x": ArraySpec((4,))}, obs_horizon=TOKENS, embed_dim=EMBED)
    parameters = dict(torch.nn.ModuleDict({"head": network, "encoder": encoder}).named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    obs, target = {"x": torch.randn(8, TOKENS, 4)}, torch.randn(noise.shape)
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        (network(noise, encoder(obs)) - target).square().mean().backward()
    gradients = {key: parameter.grad for key, parameter in parameters.items()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert [key for key, gradient in gradients.items() if gradient is None or gradient.abs().max() < 1e-9] == []
