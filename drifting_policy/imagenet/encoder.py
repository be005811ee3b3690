"""ImageEncoder: the network of residual blocks whose features the drifting field compares images by."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drifting_policy.imagenet.features import map_features, root_mean_square
from drifting_policy.imagenet.layers import EPSILON
from drifting_policy.types import ConfigError

# What the network computes in; parameters and the statistics of norms are float32 in both.
COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}

GROUPS = 32  # of channels in a norm, or the next smaller number that divides the channels
TRUNCATED = 0.87962566103423978  # standard deviation of a standard normal that is cut at -2 and 2


def lecun_init(layer: nn.Linear | nn.Conv2d) -> None:
    """Give `layer` weights of variance 1 / inputs, normal and cut at two deviations, and no bias (LeCun et al. 1998)."""
    deviation = layer.weight[0].numel() ** -0.5 / TRUNCATED
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class CastConv(nn.Conv2d):
    """A convolution that computes in `compute` and keeps the size of the map, or divides it by `stride`, rounding up."""

    def __init__(
        self, inputs: int, outputs: int, *, edge: int, stride: int = 1, bias: bool = False, compute: torch.dtype
    ) -> None:
        """From `inputs` to `outputs` channels, with square kernels of odd `edge`."""
        self.compute = compute
        super().__init__(inputs, outputs, edge, stride=stride, padding=edge // 2, bias=bias)

    def reset_parameters(self) -> None:
        """LeCun normal weights, zero bias."""
        lecun_init(self)

    def forward(self, x: Float[Tensor, "b f h w"]) -> Float[Tensor, "b e h2 w2"]:
        """The map in the layer's own type."""
        bias = None if self.bias is None else self.bias.to(self.compute)
        return functional.conv2d(x.to(self.compute), self.weight.to(self.compute), bias, self.stride, self.padding)


class ChannelNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018) of as many groups as divide the channels, at most 32; computed in float32."""

    def __init__(self, channels: int) -> None:
        """Maps of `channels` channels; weight one and bias zero to begin with."""
        super().__init__(max(count for count in range(1, GROUPS + 1) if channels % count == 0), channels, eps=EPSILON)

    def forward(self, x: Float[Tensor, "b e h w"]) -> Float[Tensor, "b e h w"]:
        """The normalised map, in the type of `x`."""
        weight, bias = self.weight.float(), self.bias.float()
        return functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class NormedConv(nn.Module):
    """A convolution without bias, then a norm."""

    def __init__(self, inputs: int, outputs: int, *, edge: int = 3, stride: int = 1, compute: torch.dtype) -> None:
        """From `inputs` to `outputs` channels."""
        super().__init__()
        self.conv = CastConv(inputs, outputs, edge=edge, stride=stride, compute=compute)
        self.norm = ChannelNorm(outputs)

    def forward(self, x: Float[Tensor, "b f h w"]) -> Float[Tensor, "b e h2 w2"]:
        """The map, which may be negative."""
        result: Tensor = self.norm(self.conv(x))
        return result


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016), which is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, compute: torch.dtype) -> None:
        """From `inputs` to `outputs` channels; the first convolution has the stride."""
        super().__init__()
        same = inputs == outputs and stride == 1
        self.first = NormedConv(inputs, outputs, stride=stride, compute=compute)
        self.second = NormedConv(outputs, outputs, compute=compute)
        self.shortcut = nn.Identity() if same else NormedConv(inputs, outputs, edge=1, stride=stride, compute=compute)

    def forward(self, x: Float[Tensor, "b f h w"]) -> Float[Tensor, "b e h2 w2"]:
        """The map, nowhere negative."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


class ImageEncoder(nn.Module):
    """A stem and four stages of residual blocks (arXiv 2602.04770, appendix A.3), trained as a masked auto-encoder's encoder.

    Args:
        in_channels: Channels of the images.
        width: Channels of the stem and of the first stage; each further stage has twice the channels on half the edges.
        layers: Residual blocks of each of the four stages.
        fold: Edge in pixels of the squares that become the channels of one position.
        precision: "float32" or "bfloat16"; parameters and norms are float32 in both.
        checkpointing: Whether the backward pass computes blocks again, to save memory.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: int,
        layers: Sequence[int] = (3, 4, 6, 3),
        fold: int = 1,
        precision: str = "float32",
        checkpointing: bool = False,
    ) -> None:
        """A fresh encoder.

        Raises:
            ConfigError: an unknown precision, or sizes of which no such network can be built.
        """
        super().__init__()
        self.recipe: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.recipe["layers"] = list(layers)
        if precision not in COMPUTE:
            raise ConfigError(f"Unknown precision '{precision}' of an encoder; choose one of {sorted(COMPUTE)}.")
        if len(layers) != 4 or min(layers) < 1:
            raise ConfigError(f"layers must be four numbers of blocks, each at least 1; got {list(layers)}.")
        if min(in_channels, width, fold) < 1:
            raise ConfigError(f"in_channels, width and fold must be at least 1; got {in_channels}, {width} and {fold}.")
        compute = COMPUTE[precision]
        self.in_channels, self.fold, self.checkpointing = in_channels, fold, checkpointing
        self.widths = tuple(width * 2**stage for stage in range(4))
        self.stem = NormedConv(in_channels * fold**2, width, compute=compute)
        self.stages, self.norms = nn.ModuleList(), nn.ModuleList()
        inputs = width
        for stage, (outputs, count) in enumerate(zip(self.widths, layers, strict=True)):
            first = ResidualBlock(inputs, outputs, stride=2 if stage else 1, compute=compute)
            others = (ResidualBlock(outputs, outputs, stride=1, compute=compute) for _ in range(count - 1))
            self.stages.append(nn.ModuleList([first, *others]))
            self.norms.append(ChannelNorm(outputs))
            inputs = outputs

    def forward(self, images: Float[Tensor, "b c h w"], *, every_block: int = 0) -> dict[str, Tensor]:
        """Maps "b e h w" by the names of the release; see `maps`.

        Raises:
            ConfigError: images of other channels, or with edges that `fold` does not divide.
        """
        return self.maps(self.folded(images), every_block=every_block)

    def folded(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f h2 w2"]:
        """Each square of `fold` by `fold` pixels as the channels of one position: rows, then columns, then colours.

        Raises:
            ConfigError: images of other channels, or with edges that `fold` does not divide.
        """
        channels, height, width = images.shape[1:]
        if channels != self.in_channels or height % self.fold or width % self.fold or not height * width:
            raise ConfigError(
                f"The encoder takes images of {self.in_channels} channels whose edges are multiples of {self.fold}; "
                f"got {channels} channels of {height} x {width}."
            )
        folded: Tensor = rearrange(images, "b c (h p) (w q) -> b (p q c) h w", p=self.fold, q=self.fold)
        return folded

    def maps(self, folded: Float[Tensor, "b f h w"], *, every_block: int = 0) -> dict[str, Tensor]:
        """`conv1`, the stem's map; `layer1` to `layer4`, those of the stages after their norm; then those of single blocks.

        These are `layer1_blk2` and so on, before the norm of the stage: every `every_block`-th of each stage, 0 for none.
        Maps are in the type of the network.
        """
        x = functional.relu(self.stem(folded))
        found, inside = {"conv1": x}, {}
        for stage, (blocks, norm) in enumerate(zip(self.stages, self.norms, strict=True), start=1):
            for number, block in enumerate(blocks.children(), start=1):
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and torch.is_grad_enabled() else block(x)
                if every_block > 0 and number % every_block == 0:
                    inside[f"layer{stage}_blk{number}"] = x
            x = found[f"layer{stage}"] = norm(x)
        return found | inside

    def features(
        self, images: Float[Tensor, "b c h w"], *, every_block: int = 2, cells: Sequence[int] = (2, 4)
    ) -> dict[str, Tensor]:
        """Vectors "b s e" that the drifting field compares, by the names and in the order of the release.

        First `norm_x`, the root mean square of each channel of the folded images, then `map_features` of all maps; the images
        themselves are not among them. Vectors of single positions are in the type of the network, all others float32.

        Args:
            images: Whole images, unmasked.
            every_block: Which blocks count beside the stages: every second, third, ...; 0 for none.
            cells: Edges of the squares of positions over which means and deviations are taken.

        Raises:
            ConfigError: images of other channels, or with edges that `fold` does not divide.
        """
        folded = self.folded(images)
        found = {"norm_x": root_mean_square(folded)}
        for name, values in self.maps(folded, every_block=every_block).items():
            found |= map_features(name, values, cells=cells)
        return found
