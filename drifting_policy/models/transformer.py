"""TransformerGenerator: action steps attend to each other and to the observation tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting_policy.models.layers import Generator, Time, TimeEmbedding, for_each_sample
from drifting_policy.types import ConfigError


class TransformerGenerator(Generator):
    """Pre-norm transformer decoder: one token per action step, cross-attention to the conditioning tokens."""

    def __init__(
        self,
        *,
        sample_shape: tuple[int, int],
        tokens: int,
        embed_dim: int,
        width: int,
        depth: int,
        heads: int,
        time: bool = False,
    ) -> None:
        """`depth` layers of `width`; no dropout, so that training draws all its randomness from explicit generators.

        `time`: whether the head hears one, as a further conditioning token.

        Raises:
            ConfigError: where `width` cannot be shared out evenly among the heads.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"The transformer's width must be a multiple of its heads; got {width} and {heads}.")
        self.sample_shape = sample_shape
        self.noise = nn.Linear(sample_shape[1], width)
        self.cond = nn.Linear(embed_dim, width)
        self.step_embedding = nn.Parameter(nn.init.normal_(torch.empty(sample_shape[0], width), std=0.02))
        self.cond_embedding = nn.Parameter(nn.init.normal_(torch.empty(tokens, width), std=0.02))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, sample_shape[1])
        self.time = TimeEmbedding(width) if time else None

    def forward(
        self, noise: Float[Tensor, "b g t d"], cond: Float[Tensor, "b s e"], time: Time = None
    ) -> Float[Tensor, "b g t d"]:
        """Action chunks in network units."""
        memory = for_each_sample(self.cond(cond) + self.cond_embedding, noise.shape[1])
        if (moment := self.embed_time(time)) is not None:
            token = moment.expand(-1, noise.shape[1], -1).flatten(0, 1)[:, None]
            memory = torch.cat([token, memory], dim=1)
        x = self.noise(noise.flatten(0, 1)) + self.step_embedding
        for layer in self.layers:
            x = layer(x, memory)
        chunk: Tensor = self.output(self.norm(x))
        return chunk.view(noise.shape)
