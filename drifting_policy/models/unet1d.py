"""UnetGenerator: the conditional 1-D U-Net of Diffusion Policy, as a one-step action head or one that hears a time."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting_policy.models.layers import Generator, Time, TimeEmbedding, for_each_sample
from drifting_policy.types import ConfigError


class ConvBlock(nn.Module):
    """Convolution over time, group norm, Mish."""

    def __init__(self, *, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        """A block that keeps the number of steps."""
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b c2 t"]:
        """Features with `outputs` channels."""
        return nn.functional.mish(self.norm(self.conv(x)))


class FilmBlock(nn.Module):
    """Two convolutions; the conditioning scales and shifts the channels between them (FiLM)."""

    def __init__(self, *, inputs: int, outputs: int, cond_dim: int, kernel: int, groups: int) -> None:
        """A residual block from `inputs` to `outputs` channels."""
        super().__init__()
        self.first = ConvBlock(inputs=inputs, outputs=outputs, kernel=kernel, groups=groups)
        self.film = nn.Linear(cond_dim, 2 * outputs)
        self.second = ConvBlock(inputs=outputs, outputs=outputs, kernel=kernel, groups=groups)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "bg c t"], cond: Float[Tensor, "b f"], samples: int) -> Float[Tensor, "bg c2 t"]:
        """Features with `outputs` channels; as many consecutive rows of `x` as `samples` share a row of `cond`."""
        film = for_each_sample(self.film(nn.functional.mish(cond)), samples)
        scale, shift = film.unsqueeze(-1).chunk(2, dim=1)
        hidden = self.first(x) * (1 + scale) + shift
        result: Tensor = self.second(hidden) + self.skip(x)
        return result


class UnetGenerator(Generator):
    """1-D U-Net over the steps of the chunk, conditioned by FiLM (Chi et al. 2023, Diffusion Policy)."""

    def __init__(
        self,
        *,
        sample_shape: tuple[int, int],
        tokens: int,
        embed_dim: int,
        channels: Sequence[int],
        kernel: int,
        groups: int,
        film_dim: int,
        time: bool = False,
    ) -> None:
        """One level per entry of `channels`; every level but the last halves the number of steps. `time`: whether it hears one.

        Raises:
            ConfigError: where the prediction horizon cannot be halved that often, or on an impossible option.
        """
        super().__init__()
        levels = len(channels)
        if not channels or any(count % groups for count in channels):
            raise ConfigError(
                f"The U-Net needs at least one entry of channels, each a multiple of {groups}; got {[*channels]}."
            )
        if kernel % 2 == 0:
            raise ConfigError(f"The U-Net's kernel must be odd, so that convolutions keep the number of steps; got {kernel}.")
        if sample_shape[0] % 2 ** (levels - 1):
            raise ConfigError(
                f"The U-Net halves the prediction horizon {levels - 1} times: {sample_shape[0]} must be a multiple "
                f"of {2 ** (levels - 1)}. Choose another pred_horizon or fewer channels."
            )
        self.sample_shape = sample_shape
        self.cond = nn.Linear(tokens * embed_dim, film_dim)

        def block(inputs: int, outputs: int) -> FilmBlock:
            return FilmBlock(inputs=inputs, outputs=outputs, cond_dim=film_dim, kernel=kernel, groups=groups)

        widths = [sample_shape[1], *channels]
        self.down = nn.ModuleList(nn.ModuleList([block(a, b), block(b, b)]) for a, b in pairwise(widths))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = nn.ModuleList([block(channels[-1], channels[-1]), block(channels[-1], channels[-1])])
        reverse = list(channels)[::-1]
        self.up = nn.ModuleList(nn.ModuleList([block(a + b, b), block(b, b)]) for a, b in pairwise(reverse))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) for c in reverse[:-1])
        self.last = ConvBlock(inputs=channels[0], outputs=channels[0], kernel=kernel, groups=groups)
        self.output = nn.Conv1d(channels[0], sample_shape[1], 1)
        self.time = TimeEmbedding(film_dim) if time else None

    def forward(
        self, noise: Float[Tensor, "b g t d"], cond: Float[Tensor, "b s e"], time: Time = None
    ) -> Float[Tensor, "b g t d"]:
        """Action chunks in network units."""
        film, moment, samples = self.cond(cond.flatten(1)), self.embed_time(time), noise.shape[1]
        if moment is not None:
            per_sample = film[:, None] + moment
            film, samples = per_sample.flatten(0, 1), samples // per_sample.shape[1]
        x, skips = noise.flatten(0, 1).transpose(1, 2), []
        for level, blocks in enumerate(self.down):
            x = _through(blocks, x, film, samples)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)
        x = _through(self.middle, x, film, samples)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            x = _through(blocks, torch.cat([grow(x), skips.pop()], dim=1), film, samples)
        chunk: Tensor = self.output(self.last(x))
        return chunk.transpose(1, 2).reshape(noise.shape)


def _through(blocks: nn.Module, x: Tensor, film: Tensor, samples: int) -> Tensor:
    for block in blocks.children():
        x = block(x, film, samples)
    return x
