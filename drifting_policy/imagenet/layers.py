"""Layers of the image generator whose parameters are float32 whatever they compute in."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6  # of every normalisation


@dataclass(frozen=True)
class Precision:
    """What is computed in which type. Parameters, statistics of norms and adaLN are float32 in all of them.

    `network` is the type of the linear layers and of what flows between blocks, `rotary` that of angles and rotation,
    `attention` that of logits, softmax and its product with the values.
    """

    network: torch.dtype
    rotary: torch.dtype
    attention: torch.dtype


# The release computes the rotary positions of its latent models in bfloat16, where neighbours beyond position 256 fall together
# ("release_half"). "bfloat16" keeps the angles apart and the attention fast: the choice for one's own training.
PRECISIONS = {
    "float32": Precision(torch.float32, torch.float32, torch.float32),
    "bfloat16": Precision(torch.bfloat16, torch.float32, torch.bfloat16),
    "release": Precision(torch.bfloat16, torch.float32, torch.float32),
    "release_half": Precision(torch.bfloat16, torch.bfloat16, torch.bfloat16),
}


class CastLinear(nn.Linear):
    """A linear layer that computes in `compute`; Xavier uniform weights and no bias to begin with."""

    def __init__(self, inputs: int, outputs: int, *, compute: torch.dtype) -> None:
        """From `inputs` to `outputs` numbers."""
        self.compute = compute
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        """Xavier uniform weights, zero bias; a fused projection counts all its outputs."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "... f"]) -> Float[Tensor, "... e"]:
        """The product in the layer's own type."""
        return functional.linear(x.to(self.compute), self.weight.to(self.compute), self.bias.to(self.compute))


class RmsNorm(nn.Module):
    """Vectors of unit root mean square, times a weight; computed in float32, returned in the type of the input."""

    def __init__(self, width: int) -> None:
        """Vectors of `width` numbers."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... e"]) -> Float[Tensor, "... e"]:
        """The normalised vectors."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON) * self.weight).to(x.dtype)


def make_norm(width: int, *, rms: bool, affine: bool) -> nn.Module:
    """RMSNorm, or the layer norm that the variants without it use, with scale and bias if `affine`."""
    return RmsNorm(width) if rms else nn.LayerNorm(width, eps=EPSILON, elementwise_affine=affine)


def rotary_angles(length: int, width: int, *, dtype: torch.dtype) -> Float[Tensor, "2 s e"]:
    """Cosines and sines of the angles of `length` positions for heads of `width` numbers (Su et al. 2021, RoFormer)."""
    half = width // 2
    frequencies = (10_000.0 ** (-torch.arange(half, dtype=torch.float32) / half)).to(dtype)
    angles = torch.arange(length).to(dtype)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Float[Tensor, "b heads s e"], angles: Float[Tensor, "2 s half"]) -> Float[Tensor, "b heads s e"]:
    """Each pair (i, i + half) of `x` turned by the angle of its position, in the type of the angles."""
    (left, right), (cos, sin) = x.to(angles.dtype).chunk(2, dim=-1), angles
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def position_table(grid: int, width: int) -> Float[Tensor, "1 s e"]:
    """Sine-cosine codes of a square grid, row by row: the first half of each code tells the column, the second the row."""
    quarter = width // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    code = torch.cat([angles.sin(), angles.cos()], dim=1)  # "grid e/2"
    columns, rows = code.expand(grid, grid, -1), code[:, None].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width).float()


def sinusoids(values: Float[Tensor, " b"], *, count: int = 256) -> Float[Tensor, "b e"]:
    """`count` numbers for each value: cosines, then sines, of falling frequencies."""
    half = count // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
