"""ConvNextFeatures: what a ConvNeXt V2 that was trained elsewhere sees in an image, beside the features of an ImageEncoder."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drifting_policy.imagenet.encoder import COMPUTE
from drifting_policy.imagenet.features import map_moments, positions
from drifting_policy.imagenet.layers import EPSILON
from drifting_policy.models.vit_encoder import DEVIATION, MEAN
from drifting_policy.types import ConfigError, MissingPackage

RELEASED = "facebook/convnextv2-base-22k-224"  # the network that the release adds to its encoder of pixels


class ConvNextFeatures(nn.Module):
    """A frozen ConvNeXt V2 (Woo et al. 2023) and the features that the release takes from it for generators of pixels.

    The library's response norm lacks the 1e-6 that the release adds under its root, which only a dead channel would notice.

    Args:
        weights: Folder with config.json and model.safetensors of a ConvNeXt V2 of transformers, or its name in the cache of
            Hugging Face; nothing is downloaded.
        architecture: What config.json says, for fresh weights; then `weights` is not read.
        size: Edge in pixels of the squares that the network sees.
        precision: What the network computes in, "float32" or "bfloat16"; its weights are stored in the same type.
        checkpointing: Whether the backward pass computes stages again, to save memory.
    """

    def __init__(
        self,
        *,
        weights: str = RELEASED,
        architecture: Mapping[str, Any] | None = None,
        size: int = 224,
        precision: str = "float32",
        checkpointing: bool = False,
    ) -> None:
        """The network, which is always in use and never trained.

        Raises:
            ConfigError: there is no such network, or an option is out of range.
            MissingPackage: transformers is not installed.
        """
        super().__init__()
        if precision not in COMPUTE:
            raise ConfigError(f"Unknown precision '{precision}' of an encoder; choose one of {sorted(COMPUTE)}.")
        network = pretrained(weights, architecture)
        if size < (least := network.embeddings.patch_embeddings.stride[0] * 2 ** (len(network.encoder.stages) - 1)):
            raise ConfigError(f"The ConvNeXt V2 needs images of at least {least} pixels; got size {size}.")
        self.network = network.to(COMPUTE[precision]).requires_grad_(False).eval()
        self.size, self.compute, self.checkpointing = size, COMPUTE[precision], checkpointing

    def train(self, mode: bool = True) -> "ConvNextFeatures":
        """The same features; the network is always in use."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The map "b e h w" after each stage, in the type of the network.

        Images in [-1, 1], where what lies outside is not clipped, are brought to the colours of ImageNet and to squares.

        Raises:
            ConfigError: images that are not of three channels.
        """
        if images.shape[1] != 3:
            raise ConfigError(f"The ConvNeXt V2 sees pixels in three colours; got {images.shape[1]} channels.")
        mean, deviation = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, DEVIATION))
        seen = ((images.float() + 1) / 2 - mean) / deviation
        squares = functional.interpolate(seen, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        x, maps = self.network.embeddings(squares.to(self.compute)), []
        for stage in self.network.encoder.stages:
            x = checkpoint(stage, x, use_reentrant=False) if self.checkpointing and torch.is_grad_enabled() else stage(x)
            maps.append(x)
        return maps

    def features(self, images: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        """Vectors "b s e", float32, by the names and in the order of the release.

        Of each stage the map whose every position is normalised over channels: `convenxt_stage_1`, all positions (not of the
        last stage); `convenxt_stage_1_mean` and `convenxt_stage_1_std`. Then `global_mean`, the final norm of the mean of the
        last map, and `global_std`, again the deviation of the normalised last map.

        Raises:
            ConfigError: images that are not of three channels.
        """
        found: dict[str, Tensor] = {}
        maps = self(images)
        for number, values in enumerate(maps, start=1):
            name, normal = f"convenxt_stage_{number}", normalized(values.float())
            if number < len(maps):
                found[name] = positions(normal)
            found[f"{name}_mean"], found[f"{name}_std"] = map_moments(normal)
        norm, last = self.network.layernorm, maps[-1].float().mean(dim=(2, 3))
        found["global_mean"] = functional.layer_norm(last, last.shape[1:], norm.weight.float(), norm.bias.float(), EPSILON)[
            :, None
        ]
        found["global_std"] = found[f"convenxt_stage_{len(maps)}_std"]
        return found


def normalized(maps: Float[Tensor, "b e h w"]) -> Float[Tensor, "b e h w"]:
    """(x - mean) / (deviation + 1e-3) over the channels of each position."""
    variance, mean = torch.var_mean(maps, dim=1, correction=0, keepdim=True)
    deviation = variance.clamp(min=1e-12).sqrt()  # a root has no slope at zero
    return (maps - mean) / (deviation + 1e-3)


def pretrained(weights: str, architecture: Mapping[str, Any] | None) -> Any:
    """A ConvNeXt V2 of transformers: fresh, or with the weights that lie on this machine.

    Raises:
        ConfigError: there is none, or a network of another kind.
        MissingPackage: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingPackage("Features of a ConvNeXt V2 need transformers: pip install 'drifting-policy[vit]'.") from error
    library: Any = transformers  # is not typed throughout
    if architecture is not None:
        known = {name: value for name, value in architecture.items() if name not in ("model_type", "transformers_version")}
        return library.ConvNextV2Model(library.ConvNextV2Config(**known))
    try:
        network = library.AutoModel.from_pretrained(weights, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"'{weights}' holds no ConvNeXt V2 on this machine; fetch it first ({reason}).") from error
    if network.config.model_type != "convnextv2":
        raise ConfigError(f"'{weights}' holds a network of the kind {network.config.model_type}, not a ConvNeXt V2.")
    return network
