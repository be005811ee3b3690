"""What every registered action head promises; a new head is tested by being registered and having a configuration."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drifting_policy.config import NamedConfig, arguments
from drifting_policy.models import ENCODERS, GENERATORS, Generator
from drifting_policy.types import ArraySpec

SMALL = {"width": 32, "depth": 2, "heads": 2, "channels": [16, 32], "groups": 4, "film_dim": 16}
T, D, TOKENS, EMBED = 8, 3, 2, 5
every_head = pytest.mark.parametrize("name", GENERATORS)


def head(name: str, *, wild: float = 0.0, time: bool = False) -> Generator:
    """A head with its configured options, made small; `wild` perturbs the weights, for branches that begin at zero."""
    (config,) = [node() for node in NamedConfig.__subclasses__() if node.name == name]
    options: dict[str, Any] = arguments(config)
    torch.manual_seed(0)
    small = {key: SMALL.get(key, value) for key, value in options.items()}
    result: Generator = GENERATORS[name](sample_shape=(T, D), tokens=TOKENS, embed_dim=EMBED, time=time, **small)
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


@every_head
def test_one_step_heads_are_what_they_were_before_heads_could_hear_a_time(name: str) -> None:
    """Parameters, initial weights and outputs as recorded by the revision before; float32 sums differ between machines."""
    golden = np.load(Path(__file__).parents[1] / "assets" / "one_step_golden.npz")
    state = head(name).state_dict()
    assert list(state) == golden[f"{name}.keys"].tolist()
    np.testing.assert_allclose([v.double().abs().sum() for v in state.values()], golden[f"{name}.sums"], rtol=1e-6)
    chunk = head(name, wild=0.1)(*noise_and_cond(2, 2))
    np.testing.assert_allclose(chunk.detach(), golden[f"{name}.chunk"], rtol=1e-4, atol=1e-5)


@every_head
def test_time_only_adds_parameters_and_leaves_the_others_as_they_are(name: str) -> None:
    plain, timed = head(name).state_dict(), head(name, time=True).state_dict()
    assert [key for key in timed if key not in plain] == [f"time.mlp.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    assert all(torch.equal(value, timed[key]) for key, value in plain.items())


@every_head
def test_a_sample_hears_its_own_time_and_no_other(name: str) -> None:
    network, (noise, cond) = head(name, wild=0.1, time=True), noise_and_cond()
    time = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    chunk = network(noise, cond, time)
    single = network(noise.flatten(0, 1)[:, None], cond.repeat_interleave(4, dim=0), time.flatten())
    assert_close(chunk, single.reshape(noise.shape))
    assert_close(network(noise, cond, time[:, 0]), network(noise, cond, time[:, :1].expand(3, 4)))
    other = time.clone()
    other[1, 2] = (other[1, 2] + 0.5) % 1
    changed = (network(noise, cond, other) - chunk).abs().amax(dim=(2, 3))
    assert changed[1, 2] > 1e-3
    changed[1, 2] = 0
    assert changed.max() < 1e-5


@every_head
def test_neighbouring_timesteps_are_told_apart(name: str) -> None:
    network, (noise, cond) = head(name, wild=0.1, time=True), noise_and_cond(1, 1)
    chunks = network(noise.expand(1, 101, T, D), cond, torch.linspace(0, 1, 101)[None])[0]
    assert chunks.shape == (101, T, D)
    assert (chunks[1:] - chunks[:-1]).abs().amax(dim=(1, 2)).min() > 1e-5
    assert network(noise[:0], cond[:0], torch.zeros(0)).shape == (0, 1, T, D)


@every_head
def test_a_time_must_be_given_exactly_where_it_is_heard(name: str) -> None:
    noise, cond = noise_and_cond()
    for time, given in ((True, None), (False, torch.zeros(3))):
        with pytest.raises(ValueError, match="if, and only if, it was built with time=True"):
            head(name, time=time)(noise, cond, given)


@every_head
def test_after_two_updates_every_parameter_learns_to_use_the_time(name: str) -> None:
    network, (noise, cond), time = head(name, time=True), noise_and_cond(8), torch.rand(8, 4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        (network(noise, cond, time) - (2 * time - 1)[..., None, None]).square().mean().backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not 1e-9 < p.grad.abs().max() < float("inf")]
    assert silent == []
