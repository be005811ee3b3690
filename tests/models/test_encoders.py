"""A token is what one observed step says, whatever the order of the keys."""

import torch
from torch import Tensor

from drifting_policy.models.encoders import StateEncoder
from drifting_policy.types import ArraySpec

OBSERVATIONS = {"pose": ArraySpec((3,)), "grip": ArraySpec(()), "keypoints": ArraySpec((4, 2))}


def encoder(observations: dict[str, ArraySpec], obs_horizon: int = 3) -> StateEncoder:
    torch.manual_seed(0)
    return StateEncoder(observations=observations, obs_horizon=obs_horizon, embed_dim=5)


def observation(b: int = 2, to: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {key: torch.randn(b, to, *array.shape, generator=generator) for key, array in OBSERVATIONS.items()}


def test_tokens_equal_one_linear_map_of_each_step() -> None:
    network, obs = encoder(OBSERVATIONS), observation()
    tokens = network(obs)
    assert tokens.shape == (2, network.tokens, network.embed_dim) == (2, 3, 5)
    for b in range(2):
        for step in range(3):
            parts = [obs[key][b, step].reshape(-1) for key in ("grip", "keypoints", "pose")]
            expected = network.project.weight @ torch.cat(parts) + network.project.bias + network.step_embedding[step]
            torch.testing.assert_close(tokens[b, step], expected)


def test_the_order_of_the_keys_is_irrelevant() -> None:
    tokens = encoder(OBSERVATIONS)(observation())
    backwards = encoder(dict(reversed(OBSERVATIONS.items())))(dict(reversed(observation().items())))
    assert torch.equal(tokens, backwards)


def test_equal_steps_are_told_apart_by_their_place() -> None:
    tokens = encoder(OBSERVATIONS)({key: value[:, :1].expand_as(value) for key, value in observation().items()})
    assert (tokens[:, 1:] - tokens[:, :-1]).abs().amax(dim=-1).min() > 1e-3


def test_an_empty_batch_has_no_tokens() -> None:
    assert encoder(OBSERVATIONS)(observation(b=0)).shape == (0, 3, 5)
