"""ImageEncoder: what cameras and other sensors show, one token per observed step."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting_policy.models.augment import center_crop, jitter_colours, random_crop
from drifting_policy.models.layers import ObservationEncoder
from drifting_policy.models.resnet import ResNet, SpatialSoftmax
from drifting_policy.types import ArraySpec, ConfigError

SMALLEST_CROP = 16  # px


class ImageEncoder(ObservationEncoder):
    """Images by a ResNet each, read out as keypoints; all other keys stand beside them, and become one token per step.

    Training sees each window cropped at random (all its frames at one place) and in other colours; in use the middle is seen.
    """

    def __init__(
        self,
        *,
        observations: Mapping[str, ArraySpec],
        obs_horizon: int,
        embed_dim: int,
        width: int,
        blocks: Sequence[int],
        keypoints: int,
        share: bool,
        crop: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
    ) -> None:
        """One token of `embed_dim` numbers per observed step; keys enter in alphabetical order.

        Args:
            observations: Per-step arrays; those of uint8 "h w c" are images.
            obs_horizon: Observed steps.
            embed_dim: Numbers in a token.
            width: Channels of the first stage of the ResNet; 64 is ResNet-18.
            blocks: Residual blocks of each stage.
            keypoints: Points that are read out of each image.
            share: One network for all cameras, rather than one each.
            crop: Share of the edges that is seen, in (0, 1]; 1 sees whole images, and never crops at random.
            brightness: Strength of the random change, in [0, 1]; 0 for none. So for the following ones.
            contrast: The same around the mean luma of a window.
            saturation: The same around the luma of each pixel.
            hue: Largest turn in shares of the colour circle, in [0, 0.5].

        Raises:
            ConfigError: there is no image, or an option is out of range.
        """
        super().__init__()
        self.cameras = tuple(sorted(key for key, array in observations.items() if array.is_image))
        self.others = tuple(sorted(set(observations) - set(self.cameras)))
        self.jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.crops = {key: crop_size(key, observations[key].shape, crop) for key in self.cameras}
        channels = {key: observations[key].shape[-1] for key in self.cameras}
        self._check(channels, share)

        def network(count: int) -> nn.Module:
            resnet = ResNet(channels=count, width=width, blocks=blocks)
            return nn.Sequential(resnet, SpatialSoftmax(channels=resnet.channels, keypoints=keypoints))

        if share:
            self.networks = nn.ModuleDict({"shared": network(next(iter(channels.values())))})
        else:
            self.networks = nn.ModuleDict({key: network(count) for key, count in channels.items()})
        self.tokens, self.embed_dim = obs_horizon, embed_dim
        size = 2 * keypoints * len(self.cameras) + sum(observations[key].size for key in self.others)
        self.project = nn.Linear(size, embed_dim)
        # Heads that attend to tokens, rather than read them in order, must be able to tell the steps apart.
        self.step_embedding = nn.Parameter(nn.init.normal_(torch.empty(obs_horizon, embed_dim), std=0.02))

    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "b s e"]:
        """Tokens, one per observed step; of images that were not cropped yet, the middle is seen."""
        parts = [self._keypoints(key, obs[key]) for key in self.cameras]
        parts += [obs[key].unsqueeze(-1).flatten(2) for key in self.others]
        tokens: Tensor = self.project(torch.cat(parts, dim=-1)) + self.step_embedding
        return tokens

    def augment(self, obs: Mapping[str, Tensor], generator: torch.Generator) -> Mapping[str, Tensor]:
        """The same observations, with images cropped and coloured at random; cameras change apart from each other."""
        altered = dict(obs)
        for key in self.cameras:
            images = random_crop(obs[key], *self.crops[key], generator)
            if any(self.jitter.values()):
                images = 2 * jitter_colours((images + 1) / 2, generator, **self.jitter) - 1
            altered[key] = images
        return altered

    def _keypoints(self, key: str, images: Float[Tensor, "b to h w c"]) -> Float[Tensor, "b to k2"]:
        seen = center_crop(images, *self.crops[key]).movedim(-1, -3)
        points: Tensor = self.networks["shared" if "shared" in self.networks else key](seen.flatten(0, 1))
        return points.reshape(*seen.shape[:2], -1)

    def _check(self, channels: Mapping[str, int], share: bool) -> None:
        if not channels:
            raise ConfigError("The encoder 'image' needs an observation of dtype uint8; without images choose encoder=state.")
        if share and len(set(channels.values())) > 1:
            raise ConfigError(f"Cameras that share a network must have equally many channels; they have {dict(channels)}.")
        for name, strength in self.jitter.items():
            if not 0 <= strength <= (0.5 if name == "hue" else 1):
                raise ConfigError(f"encoder.{name} must lie in [0, {0.5 if name == 'hue' else 1}]; got {strength}.")
        if any(self.jitter.values()) and set(channels.values()) != {3}:
            raise ConfigError(f"Colours can be jittered in RGB images only; the cameras have {dict(channels)} channels.")


def crop_size(key: str, shape: tuple[int, ...], share: float) -> tuple[int, int]:
    """Height and width of what is seen of a camera.

    Raises:
        ConfigError: no image "h w c", a share out of range, or too few px left.
    """
    if len(shape) != 3:
        raise ConfigError(f"The image '{key}' must be 'h w c'; the task declares {shape}.")
    if not 0 < share <= 1:
        raise ConfigError(f"encoder.crop is the share of the edges that is seen, in (0, 1]; got {share}.")
    height, width = (round(share * size) for size in shape[:2])
    if min(height, width) < SMALLEST_CROP:
        raise ConfigError(f"Of the image '{key}', {height} x {width} px would be seen; at least {SMALLEST_CROP} are needed.")
    return height, width
