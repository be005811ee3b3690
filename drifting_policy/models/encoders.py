"""Observation encoders."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting_policy.models.layers import ObservationEncoder
from drifting_policy.types import ArraySpec


class StateEncoder(ObservationEncoder):
    """Low-dimensional observations: all keys of a step, side by side, become one token."""

    def __init__(self, *, observations: Mapping[str, ArraySpec], obs_horizon: int, embed_dim: int) -> None:
        """One token of `embed_dim` numbers per observed step; keys enter in alphabetical order."""
        super().__init__()
        self.keys = tuple(sorted(observations))
        self.tokens, self.embed_dim = obs_horizon, embed_dim
        self.project = nn.Linear(sum(observations[key].size for key in self.keys), embed_dim)
        # Heads that attend to tokens, rather than read them in order, must be able to tell the steps apart.
        self.step_embedding = nn.Parameter(nn.init.normal_(torch.empty(obs_horizon, embed_dim), std=0.02))

    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "b s e"]:
        """Tokens, one per observed step."""
        flat = torch.cat([obs[key].unsqueeze(-1).flatten(2) for key in self.keys], dim=-1)
        tokens: Tensor = self.project(flat) + self.step_embedding
        return tokens
