"""VitEncoder: images as features of a Vision Transformer that was trained elsewhere and stays as it is."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting_policy.models.augment import center_crop, random_crop
from drifting_policy.models.image_encoder import crop_size
from drifting_policy.models.layers import ObservationEncoder
from drifting_policy.types import ArraySpec, ConfigError, MissingPackage

# Mean and deviation of the colours of ImageNet in 0..1, which such networks were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VitEncoder(ObservationEncoder):
    """The class token of each camera's image and all other keys, side by side, become one token per observed step.

    The transformer is frozen. Its weights travel with the policy's, so a trained policy needs no other file.
    """

    def __init__(
        self,
        *,
        observations: Mapping[str, ArraySpec],
        obs_horizon: int,
        embed_dim: int,
        weights: str,
        architecture: Mapping[str, Any] | None,
        size: int,
        crop: float,
    ) -> None:
        """One token of `embed_dim` numbers per observed step; keys enter in alphabetical order.

        Args:
            observations: Per-step arrays; those of uint8 "h w c" are RGB images.
            obs_horizon: Observed steps.
            embed_dim: Numbers in a token.
            weights: Folder with config.json and model.safetensors of a ViT or DINOv2 of transformers, or its name in the cache
                of Hugging Face; nothing is downloaded.
            architecture: What config.json says, for fresh weights, which a checkpoint replaces; then `weights` is not read.
            size: Edge in px of the squares that the transformer sees, a multiple of its patches.
            crop: Share of the edges that is seen, in (0, 1]; training crops at random.

        Raises:
            ConfigError: there is no RGB image, no such network, or an option is out of range.
            MissingPackage: transformers is not installed.
        """
        super().__init__()
        self.cameras = tuple(sorted(key for key, array in observations.items() if array.is_image))
        self.others = tuple(sorted(set(observations) - set(self.cameras)))
        if not self.cameras or any(observations[key].shape[-1] != 3 for key in self.cameras):
            raise ConfigError("The encoder 'vit' needs observations of dtype uint8 and shape [h, w, 3], and no other images.")
        self.crops = {key: crop_size(key, observations[key].shape, crop) for key in self.cameras}
        self.backbone = _network(weights, architecture).requires_grad_(False).eval()
        known = self.backbone.config
        if size < known.patch_size or size % known.patch_size:
            raise ConfigError(f"encoder.size must be a multiple of the patches of {known.patch_size} px; got {size}.")
        self.settled = {"weights": "", "architecture": known.to_diff_dict()}
        self.size, self.tokens, self.embed_dim = size, obs_horizon, embed_dim
        numbers = known.hidden_size * len(self.cameras) + sum(observations[key].size for key in self.others)
        self.project = nn.Linear(numbers, embed_dim)
        # Heads that attend to tokens, rather than read them in order, must be able to tell the steps apart.
        self.step_embedding = nn.Parameter(nn.init.normal_(torch.empty(obs_horizon, embed_dim), std=0.02))

    def train(self, mode: bool = True) -> "VitEncoder":
        """The same encoder in training or in use; the transformer is always in use."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "b s e"]:
        """Tokens, one per observed step; of images that were not cropped yet, the middle is seen."""
        parts = [self._features(key, obs[key]) for key in self.cameras]
        parts += [obs[key].unsqueeze(-1).flatten(2) for key in self.others]
        tokens: Tensor = self.project(torch.cat(parts, dim=-1)) + self.step_embedding
        return tokens

    def augment(self, obs: Mapping[str, Tensor], generator: torch.Generator) -> Mapping[str, Tensor]:
        """The same observations, with images cropped at random."""
        return dict(obs) | {key: random_crop(obs[key], *self.crops[key], generator) for key in self.cameras}

    @torch.no_grad()
    def _features(self, key: str, images: Float[Tensor, "b to h w c"]) -> Float[Tensor, "b to e2"]:
        seen = (center_crop(images, *self.crops[key]) + 1) / 2
        seen = (seen - torch.tensor(MEAN).to(seen)) / torch.tensor(DEVIATION).to(seen)
        squares = nn.functional.interpolate(
            seen.flatten(0, 1).movedim(-1, 1), (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
        )
        native = self.backbone.config.image_size == self.size
        told = {} if native or self.backbone.config.model_type != "vit" else {"interpolate_pos_encoding": True}
        features: Tensor = self.backbone(squares, **told).last_hidden_state[:, 0]
        return features.reshape(*images.shape[:2], -1)


def _network(weights: str, architecture: Mapping[str, Any] | None) -> Any:
    """The transformer: fresh, or with the weights that lie on this machine."""
    try:
        import transformers
    except ImportError as error:
        raise MissingPackage("The encoder 'vit' needs transformers: pip install 'drifting-policy[vit]'.") from error
    library: Any = transformers  # is not typed throughout
    if architecture is not None:
        known = {name: value for name, value in architecture.items() if name != "transformers_version"}
        return library.AutoModel.from_config(library.AutoConfig.for_model(**known))
    if not weights:
        raise ConfigError("Say which network the encoder 'vit' shall use: encoder.weights=FOLDER with a ViT or DINOv2.")
    try:
        return library.AutoModel.from_pretrained(weights, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"encoder.weights={weights} holds no network for the encoder 'vit' ({reason}).") from error
