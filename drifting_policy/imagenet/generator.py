"""ImageGenerator: noise, a class, a guidance scale and a style become an image in one evaluation."""

import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from drifting_policy.imagenet.layers import PRECISIONS, CastLinear, RmsNorm, make_norm, position_table, sinusoids
from drifting_policy.imagenet.transformer import BlockSpec, Modulation, Transformer
from drifting_policy.models.layers import zero_init
from drifting_policy.types import ConfigError

GUIDANCE_WEIGHT = 0.02  # of the embedding of the guidance scale among those of class and style


class Conditioning(nn.Module):
    """One vector for a class, a guidance scale and a style: the sum of their embeddings."""

    def __init__(self, *, classes: int, cond_dim: int, styles: int, style_tokens: int, compute: torch.dtype) -> None:
        """`style_tokens` tables of `styles` entries each; without `styles` there is no style."""
        super().__init__()
        self.compute = compute
        self.label = nn.Parameter(torch.empty(classes, cond_dim))
        self.style = nn.Parameter(torch.empty(style_tokens if styles else 0, styles, cond_dim))
        self.guidance = nn.Sequential(
            CastLinear(256, cond_dim, compute=compute), nn.SiLU(), CastLinear(cond_dim, cond_dim, compute=compute)
        )
        self.guidance_norm = RmsNorm(cond_dim)
        for weight in (self.label, self.style, *(layer.weight for layer in self.guidance if isinstance(layer, CastLinear))):
            nn.init.normal_(weight, std=0.02)

    def forward(
        self, labels: Int[Tensor, " b"], cfg_scale: Float[Tensor, " b"], style: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b e"]:
        """The vectors, in the type of the network."""
        cond = self.label.to(self.compute)[labels]
        for table, index in zip(self.style.to(self.compute), style.T, strict=True):
            cond = cond + table[index]  # one after another: in bfloat16 the order decides the rounding
        guidance = self.guidance_norm(self.guidance(sinusoids(cfg_scale)))
        result: Tensor = cond + GUIDANCE_WEIGHT * guidance
        return result


class ImageGenerator(nn.Module):
    """A transformer on patches, conditioned by adaLN-zero and by registers (arXiv 2602.04770, appendix A.2).

    Args:
        classes: Number of classes.
        image_size: Height and width of noise and image, in pixels or latents.
        in_channels: Channels of the noise.
        out_channels: Channels of the image.
        patch: Height and width of a token, which must divide `image_size`.
        width: Numbers per token.
        depth: Number of blocks.
        heads: Attention heads.
        cond_dim: Numbers of the conditioning vector.
        mlp_ratio: How much wider a feed-forward net is inside than outside, before it is gated.
        registers: Extra tokens that carry the conditioning.
        styles: Entries of each style table; 0 for no style.
        style_tokens: Number of style tables, that is of integers in a style.
        qk_norm: Whether queries and keys are normalised.
        gated: Whether feed-forward nets are gated (SwiGLU) or plain (GELU).
        rotary: Whether attention turns queries and keys by their position.
        rms: Whether norms are RMSNorm or layer norms.
        precision: One of PRECISIONS.
        checkpointing: Whether the backward pass computes blocks again, to save memory.
        noise_scale: What the noise is multiplied by; with 0 the styles alone decide which image is drawn.
    """

    def __init__(
        self,
        *,
        classes: int,
        image_size: int,
        in_channels: int,
        out_channels: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        cond_dim: int,
        mlp_ratio: float = 4.0,
        registers: int = 16,
        styles: int = 64,
        style_tokens: int = 32,
        qk_norm: bool = True,
        gated: bool = True,
        rotary: bool = True,
        rms: bool = True,
        precision: str = "bfloat16",
        checkpointing: bool = False,
        noise_scale: float = 1.0,
    ) -> None:
        """A fresh generator, whose images are all zero.

        Raises:
            ConfigError: an unknown precision, sizes that do not divide each other, or neither noise nor styles.
        """
        super().__init__()
        if not 0 <= noise_scale < math.inf or not (noise_scale or styles * style_tokens):
            raise ConfigError(f"noise_scale must be finite, at least 0, and more where there are no styles; got {noise_scale}.")
        check_sizes(image_size=image_size, patch=patch, width=width, heads=heads, rotary=rotary, precision=precision)
        self.recipe: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        kind, grid = PRECISIONS[precision], image_size // patch
        self.classes, self.patch, self.grid, self.registers = classes, patch, grid, registers
        self.image_shape = (in_channels, image_size, image_size)
        self.styles, self.style_tokens = styles, style_tokens if styles else 0
        self.noise_scale = noise_scale
        self.conditioning = Conditioning(
            classes=classes, cond_dim=cond_dim, styles=styles, style_tokens=style_tokens, compute=kind.network
        )
        self.embed = CastLinear(in_channels * patch**2, width, compute=kind.network)
        self.positions = nn.Parameter(position_table(grid, width))
        if registers:
            self.register_embed = CastLinear(cond_dim, width, compute=kind.network)
            self.register_table = nn.Parameter(torch.empty(1, registers, width))
            nn.init.normal_(self.register_table, std=0.02)
        spec = BlockSpec(width, cond_dim, heads, mlp_ratio, kind, qk_norm, gated, rms)
        length = registers + grid**2
        self.transformer = Transformer(spec, length=length, depth=depth, rotary=rotary, checkpointing=checkpointing)
        self.modulation = Modulation(cond_dim=cond_dim, width=width, count=2, precision=kind)
        self.norm = make_norm(width, rms=rms, affine=False)
        self.output = zero_init(CastLinear(width, out_channels * patch**2, compute=kind.network))

    def forward(
        self,
        noise: Float[Tensor, "b c h w"],
        *,
        labels: Int[Tensor, " b"],
        cfg_scale: Float[Tensor, " b"],
        style: Int[Tensor, "b m"],
    ) -> Float[Tensor, "b out h w"]:
        """Images in the units of the training data, float32.

        Args:
            noise: Standard normal.
            labels: Classes in [0, classes).
            cfg_scale: Strength of the guidance that the images were trained for; 1 is none.
            style: Integers in [0, styles), one for each style table: part of the noise.

        Raises:
            ValueError: noise or style of another shape than the generator was made for.
        """
        if noise.shape[1:] != self.image_shape or style.shape[1:] != (self.style_tokens,):
            raise ValueError(
                f"The generator takes noise (b, {', '.join(map(str, self.image_shape))}) and style (b, {self.style_tokens}); "
                f"got {tuple(noise.shape)} and {tuple(style.shape)}."
            )
        cond = self.conditioning(labels, cfg_scale, style)
        x = self.transformer(self.tokens(noise, cond), cond)
        shift, scale = self.modulation(cond)
        patches = self.output(self.norm(x) * (1 + scale) + shift)[:, self.registers :]
        image: Tensor = rearrange(
            patches, "b (r s) (p q c) -> b c (r p) (s q)", r=self.grid, s=self.grid, p=self.patch, q=self.patch
        )
        return image.float()

    def tokens(self, noise: Float[Tensor, "b c h w"], cond: Float[Tensor, "b cond"]) -> Float[Tensor, "b s e"]:
        """Registers, then the patches row by row; channels are the fastest axis inside a patch, as in the release."""
        patches = rearrange(noise * self.noise_scale, "b c (r p) (s q) -> b (r s) (p q c)", p=self.patch, q=self.patch)
        x: Tensor = self.embed(patches) + self.positions
        if self.registers:
            x = torch.cat([self.register_embed(cond)[:, None] + self.register_table, x], dim=1)
        return x.to(cond.dtype)

    def draw_style(self, count: int, generator: torch.Generator) -> Int[Tensor, "b m"]:
        """`count` random styles from `generator`, on its device."""
        shape = (count, self.style_tokens)
        return torch.randint(max(self.styles, 1), shape, generator=generator, device=generator.device)


def check_sizes(*, image_size: int, patch: int, width: int, heads: int, rotary: bool, precision: str) -> None:
    """Refuse what cannot be built, in a sentence."""
    if precision not in PRECISIONS:
        raise ConfigError(f"Unknown precision '{precision}'; choose one of {sorted(PRECISIONS)}.")
    if image_size % patch:
        raise ConfigError(f"The patch must divide the image: {image_size} is no multiple of {patch}.")
    if width % heads or width % 4 or (rotary and width // heads % 2):
        raise ConfigError(f"width must be a multiple of 4 and of twice the heads; got width {width} for {heads} heads.")
