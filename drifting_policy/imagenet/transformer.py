"""The transformer of the image generator: adaLN-zero blocks with rotary attention and a gated feed-forward net."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drifting_policy.imagenet.layers import CastLinear, Precision, make_norm, rotary_angles, rotate
from drifting_policy.models.layers import zero_init


@dataclass(frozen=True)
class BlockSpec:
    """The sizes and variants that all blocks share; ImageGenerator says what they mean."""

    width: int
    cond_dim: int
    heads: int
    mlp_ratio: float
    precision: Precision
    qk_norm: bool
    gated: bool
    rms: bool


class Attention(nn.Module):
    """Self-attention over all tokens; queries and keys are normalised and turned by their position, where asked for."""

    def __init__(self, spec: BlockSpec) -> None:
        """`heads` heads of width / heads numbers."""
        super().__init__()
        self.heads, self.precision, size = spec.heads, spec.precision, spec.width // spec.heads
        self.qkv = CastLinear(spec.width, 3 * spec.width, compute=spec.precision.network)
        self.q_norm = make_norm(size, rms=spec.rms, affine=True) if spec.qk_norm else nn.Identity()
        self.k_norm = make_norm(size, rms=spec.rms, affine=True) if spec.qk_norm else nn.Identity()
        self.out = CastLinear(spec.width, spec.width, compute=spec.precision.network)

    def forward(self, x: Float[Tensor, "b s e"], angles: Float[Tensor, "2 s half"] | None) -> Float[Tensor, "b s e"]:
        """What each token takes from the others."""
        q, k, v = rearrange(self.qkv(x), "b s (three heads e) -> three b heads s e", three=3, heads=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = (part.to(self.precision.attention) for part in (q, k, v))
        taken = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(rearrange(taken, "b heads s e -> b s (heads e)"))
        return result


class GatedFeedForward(nn.Module):
    """W_out(SiLU(W_gate u) * W_up u) (Shazeer 2020, SwiGLU), two thirds as wide inside as a plain net of the same size."""

    def __init__(self, spec: BlockSpec) -> None:
        """A plain net would be `mlp_ratio` times as wide inside as outside; the inner width is a multiple of 32."""
        super().__init__()
        inner = math.ceil(2 * math.floor(spec.width * spec.mlp_ratio) // 3 / 32) * 32
        self.gate = CastLinear(spec.width, inner, compute=spec.precision.network)
        self.up = CastLinear(spec.width, inner, compute=spec.precision.network)
        self.down = CastLinear(inner, spec.width, compute=spec.precision.network)

    def forward(self, x: Float[Tensor, "b s e"]) -> Float[Tensor, "b s e"]:
        """Each token by itself."""
        result: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return result


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, spec: BlockSpec) -> None:
        """`mlp_ratio` times as wide inside as outside."""
        super().__init__()
        inner = math.floor(spec.width * spec.mlp_ratio)
        self.inner = CastLinear(spec.width, inner, compute=spec.precision.network)
        self.outer = CastLinear(inner, spec.width, compute=spec.precision.network)

    def forward(self, x: Float[Tensor, "b s e"]) -> Float[Tensor, "b s e"]:
        """Each token by itself."""
        result: Tensor = self.outer(functional.gelu(self.inner(x)))
        return result


class Modulation(nn.Module):
    """adaLN-zero (Peebles and Xie 2023, DiT): `count` vectors for each conditioning vector, zero to begin with."""

    def __init__(self, *, cond_dim: int, width: int, count: int, precision: Precision) -> None:
        """Computed in float32 and returned in the type of the network."""
        super().__init__()
        self.count, self.dtype = count, precision.network
        self.linear = zero_init(CastLinear(cond_dim, count * width, compute=torch.float32))

    def forward(self, cond: Float[Tensor, "b e"]) -> tuple[Tensor, ...]:
        """The vectors "b 1 e"."""
        parts: Tensor = self.linear(functional.silu(cond.float())).to(self.dtype)[:, None]
        return parts.chunk(self.count, dim=-1)


class Block(nn.Module):
    """Attention, then the feed-forward net; the conditioning shifts and scales what enters and gates what leaves."""

    def __init__(self, spec: BlockSpec) -> None:
        """A block that begins as the identity."""
        super().__init__()
        self.modulation = Modulation(cond_dim=spec.cond_dim, width=spec.width, count=6, precision=spec.precision)
        self.norm1 = make_norm(spec.width, rms=spec.rms, affine=False)
        self.attention = Attention(spec)
        self.norm2 = make_norm(spec.width, rms=spec.rms, affine=False)
        self.feed_forward = GatedFeedForward(spec) if spec.gated else FeedForward(spec)

    def forward(
        self, x: Float[Tensor, "b s e"], cond: Float[Tensor, "b cond"], angles: Float[Tensor, "2 s half"] | None
    ) -> Float[Tensor, "b s e"]:
        """The tokens after this block."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, angles)
        result: Tensor = x + gate2 * self.feed_forward(self.norm2(x) * (1 + scale2) + shift2)
        return result


class Transformer(nn.Module):
    """`depth` blocks over `length` tokens."""

    def __init__(self, spec: BlockSpec, *, length: int, depth: int, rotary: bool, checkpointing: bool) -> None:
        """With `checkpointing` the backward pass computes each block again instead of keeping what happened inside it."""
        super().__init__()
        self.checkpointing = checkpointing
        angles = rotary_angles(length, spec.width // spec.heads, dtype=spec.precision.rotary) if rotary else None
        self.register_buffer("angles", angles, persistent=False)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(depth))

    def forward(self, x: Float[Tensor, "b s e"], cond: Float[Tensor, "b cond"]) -> Float[Tensor, "b s e"]:
        """The tokens after all blocks."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cond, self.angles, use_reentrant=False)
            else:
                x = block(x, cond, self.angles)
        return x
