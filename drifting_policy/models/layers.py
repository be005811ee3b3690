"""Interfaces and small layers that every network of the project shares."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# One time for each condition, one for each sample, or none.
Time = Float[Tensor, " b"] | Float[Tensor, "b g"] | None


class ObservationEncoder(nn.Module, ABC):
    """Turns normalised observations into conditioning tokens.

    `settled` holds the arguments with which it is made again, where they are not those that it was made with.
    """

    tokens: int
    embed_dim: int
    settled: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "b s e"]:
        """Tokens for a mapping of arrays "b to ..." in network units."""

    def augment(self, obs: Mapping[str, Tensor], generator: torch.Generator) -> Mapping[str, Tensor]:
        """What training shows instead of `obs`: here the same. An encoder of images alters them at random.

        All that is random is drawn from `generator`, which is on the CPU.
        """
        return obs


class TimeEmbedding(nn.Module):
    """A time as a vector: sinusoids of many frequencies, then a small MLP (Chi et al. 2023, Diffusion Policy)."""

    def __init__(self, width: int) -> None:
        """Vectors of `width` numbers. The frequencies are those of Diffusion Policy, where time 1 is its timestep 100."""
        super().__init__()
        half = max(width // 2, 1)
        exponents = torch.arange(half) / max(half - 1, 1)
        self.register_buffer("frequencies", 100 * 10_000**-exponents, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Float[Tensor, "b g"]) -> Float[Tensor, "b g e"]:
        """One vector for each time in [0, 1]."""
        angles = time[..., None] * self.get_buffer("frequencies")
        embedding: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))
        return embedding


class Generator(nn.Module, ABC):
    """Turns noise into a sample in one evaluation, given conditioning tokens.

    A head that is built with `time` is evaluated several times for a sample: it also hears how far the sample has come.
    """

    sample_shape: tuple[int, int]
    time: TimeEmbedding | None

    @abstractmethod
    def forward(
        self, noise: Float[Tensor, "b g t d"], cond: Float[Tensor, "b s e"], time: Time = None
    ) -> Float[Tensor, "b g t d"]:
        """Action chunks in network units, g for each condition; `noise` is standard normal and picks the sample.

        With `time` in [0, 1], one for each condition or each sample, `noise` is a sample on its way and the result what
        the objective asks of the head. What depends on the condition alone is computed once for all its samples.
        """

    def embed_time(self, time: Time) -> Float[Tensor, "b _ e"] | None:
        """Vectors "b 1 e" or "b g e" of `time`; None for a one-step head.

        Raises:
            ValueError: a time for a one-step head, or none for one that must hear it.
        """
        if (self.time is None) != (time is None):
            raise ValueError("A head hears a time if, and only if, it was built with time=True.")
        if self.time is None or time is None:
            return None
        embedding: Tensor = self.time(time if time.ndim == 2 else time[:, None])
        return embedding


def for_each_sample(rows: Float[Tensor, "b ..."], samples: int) -> Float[Tensor, "bg ..."]:
    """Each row `samples` times in succession: `repeat_interleave`, which programs of torch.export tie to one batch size."""
    return rows[:, None].expand(-1, samples, *rows.shape[1:]).flatten(0, 1)


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
