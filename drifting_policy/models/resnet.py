"""A residual network for small images, without batch statistics, and keypoints of its feature maps."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from drifting_policy.types import ConfigError

GROUP_CHANNELS = 16  # of a group of GroupNorm, as in Diffusion Policy (Chi et al. 2023)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut: the basic block of He et al. 2016 (arXiv 1512.03385), with GroupNorm."""

    def __init__(self, channels: int, out_channels: int, *, stride: int) -> None:
        """From `channels` to `out_channels` at 1 / `stride` of the resolution."""
        super().__init__()
        self.first = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.first_norm = group_norm(out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second_norm = group_norm(out_channels)
        same = stride == 1 and channels == out_channels
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), group_norm(out_channels))
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Features."""
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.shortcut(x) + self.second_norm(self.second(inner)))


class ResNet(nn.Module):
    """Feature maps of images. With width 64 and blocks [2, 2, 2, 2] it is ResNet-18, with GroupNorm for BatchNorm.

    GroupNorm knows one image alone, so the features of an image depend neither on its batch nor on training or use, and their
    average over training steps (`Ema`) needs no statistics.
    """

    def __init__(self, *, channels: int, width: int, blocks: Sequence[int]) -> None:
        """Stages of `blocks` residual blocks each; every stage after the first halves resolution and doubles the channels.

        Raises:
            ConfigError: no stage, one without a block, or a width that groups of channels do not divide.
        """
        super().__init__()
        if not blocks or min(blocks) < 1:
            raise ConfigError(f"A ResNet needs stages of at least one block each; got blocks={list(blocks)}.")
        if width < 8 or width % min(width, GROUP_CHANNELS):
            raise ConfigError(f"The width of a ResNet must be 8..16 or a multiple of {GROUP_CHANNELS}; got {width}.")
        self.stem = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.stem_norm = group_norm(width)
        stages: list[nn.Module] = []
        before = width
        for stage, count in enumerate(blocks):
            after = width * 2**stage
            for place in range(count):
                stages.append(ResidualBlock(before, after, stride=2 if stage and not place else 1))
                before = after
        self.stages = nn.Sequential(*stages)
        self.channels = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Feature maps with `channels` channels, at 1/4 of the resolution after the first stage."""
        stem = functional.relu(self.stem_norm(self.stem(images)))
        features: Tensor = self.stages(functional.max_pool2d(stem, 3, stride=2, padding=1))
        return features


class SpatialSoftmax(nn.Module):
    """Where in an image something is: the mean position under a softmax of each map (Finn et al. 2016, arXiv 1509.06113)."""

    def __init__(self, *, channels: int, keypoints: int) -> None:
        """`keypoints` maps are learned combinations of the `channels` feature maps."""
        super().__init__()
        if keypoints < 1:
            raise ConfigError(f"keypoints must be at least 1; got {keypoints}.")
        self.maps = nn.Conv2d(channels, keypoints, 1)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k2"]:
        """x of every keypoint, then y of every keypoint, from -1 (left, top) to 1."""
        return expected_position(self.maps(features))


def expected_position(maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k2"]:
    """The mean x, then the mean y under the softmax of each map, in -1..1 between the centres of the outermost cells."""
    weight = maps.flatten(2).float().softmax(dim=-1).reshape(maps.shape)
    x, y = (torch.linspace(-1, 1, size, device=maps.device) if size > 1 else maps.new_zeros(1) for size in maps.shape[:1:-1])
    return torch.cat([(weight.sum(dim=2) * x).sum(dim=-1), (weight.sum(dim=3) * y).sum(dim=-1)], dim=-1)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm over groups of 16 channels, or over all where there are fewer."""
    return nn.GroupNorm(max(1, channels // GROUP_CHANNELS), channels)
