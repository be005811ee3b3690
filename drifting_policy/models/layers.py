"""Interfaces and small layers that every network of the project shares."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ObservationEncoder(nn.Module, ABC):
    """Turns normalised observations into conditioning tokens."""

    tokens: int
    embed_dim: int

    @abstractmethod
    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "b s e"]:
        """Tokens for a mapping of arrays "b to ..." in network units."""


class Generator(nn.Module, ABC):
    """Turns noise into a sample in one evaluation, given conditioning tokens."""

    sample_shape: tuple[int, int]

    @abstractmethod
    def forward(self, noise: Float[Tensor, "b g t d"], cond: Float[Tensor, "b s e"]) -> Float[Tensor, "b g t d"]:
        """Action chunks in network units, g for each condition; `noise` is standard normal and picks the sample.

        What depends on the condition alone is computed once for all its samples.
        """


def zero_init(linear: nn.Linear) -> nn.Linear:
    """The same layer with weights and bias set to zero, so that a residual branch begins as the identity."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def small_init(linear: nn.Linear) -> nn.Linear:
    """The same layer with near-zero weights: a fresh head predicts the middle of the data for every noise."""
    nn.init.normal_(linear.weight, std=1e-3)
    nn.init.zeros_(linear.bias)
    return linear


class Ema:
    """A slowly moving copy of a module's weights, with the power warm-up of Diffusion Policy.

    After update n (counted from 1) the copy keeps the share min(max_decay, 1 - (1 + n) ** -power) of itself.
    """

    def __init__(self, module: nn.Module, copy: nn.Module, *, power: float, max_decay: float) -> None:
        """Let `copy`, which has the architecture of `module`, follow it from its present weights."""
        self.module = copy.requires_grad_(False).eval()
        self.module.load_state_dict(module.state_dict())
        self.power = power
        self.max_decay = max_decay

    def decay(self, update: int) -> float:
        """The share of itself that the copy keeps at this update, in [0, max_decay]."""
        return min(self.max_decay, 1 - (1 + update) ** -self.power)

    @torch.no_grad()
    def update(self, module: nn.Module, update: int) -> None:
        """Move the copy towards `module`; `update` counts from 1."""
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - self.decay(update))
