"""MlpGenerator: the small action head, made for CPUs."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from drifting_policy.models.layers import Generator, Time, TimeEmbedding, small_init, zero_init


class MlpBlock(nn.Module):
    """Residual block whose hidden layer also hears the observation."""

    def __init__(self, *, width: int, cond_dim: int) -> None:
        """A block on vectors of `width` numbers."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.cond = nn.Linear(cond_dim, width)
        self.outer = zero_init(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "b g e"], cond: Float[Tensor, "b _ f"]) -> Float[Tensor, "b g e"]:
        """The input plus what the block adds to it; `cond` has one row for each sample or one for all."""
        hidden = functional.silu(self.inner(self.norm(x)) + self.cond(cond))
        result: Tensor = x + self.outer(hidden)
        return result


class MlpGenerator(Generator):
    """Residual MLP on the flattened chunk."""

    def __init__(
        self, *, sample_shape: tuple[int, int], tokens: int, embed_dim: int, width: int, depth: int, time: bool = False
    ) -> None:
        """`depth` residual blocks of `width`; the conditioning is `tokens` x `embed_dim`. `time`: whether it hears one."""
        super().__init__()
        self.sample_shape = sample_shape
        size, cond_dim = sample_shape[0] * sample_shape[1], tokens * embed_dim
        self.noise = nn.Linear(size, width)
        self.cond = nn.Sequential(nn.Linear(cond_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(MlpBlock(width=width, cond_dim=width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = small_init(nn.Linear(width, size))
        self.time = TimeEmbedding(width) if time else None

    def forward(
        self, noise: Float[Tensor, "b g t d"], cond: Float[Tensor, "b s e"], time: Time = None
    ) -> Float[Tensor, "b g t d"]:
        """Action chunks in network units."""
        embedding, moment = self.cond(cond.flatten(1))[:, None], self.embed_time(time)
        if moment is not None:
            embedding = embedding + moment
        hidden = self.noise(noise.flatten(2)) + embedding
        embedding = functional.silu(embedding)
        for block in self.blocks:
            hidden = block(hidden, embedding)
        chunk: Tensor = self.output(self.norm(hidden))
        return chunk.unflatten(2, self.sample_shape)  # type: ignore[no-untyped-call]
