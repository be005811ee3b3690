"""MaskGoal: a masked auto-encoder that fills in what is hidden and, towards the end, names the class."""

from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from drifting_policy.imagenet.autoencoder import MaskedAutoencoder, classification_weight, draw_mask, masked_loss
from drifting_policy.imagenet.goal import Goal
from drifting_policy.imagenet.stream import ImageStream
from drifting_policy.training.batches import mix

MASK, PREVIEW = 3, 5  # what a seed is mixed with beside the step, so that no two draws begin alike
SHOWN = 10  # images in a picture


@final
class MaskGoal(Goal):
    """Reconstruction of hidden cells, then classification beside it (arXiv 2602.04770, appendix A.3)."""

    network: MaskedAutoencoder

    def __init__(
        self,
        autoencoder: MaskedAutoencoder,
        stream: ImageStream,
        *,
        shares: tuple[float, float],
        ramp: Mapping[str, Any],
        total_steps: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Train `autoencoder`, which is on `device`.

        Args:
            autoencoder: What is trained.
            stream: Real images.
            shares: The smallest and the largest share of an image that is hidden.
            ramp: `last_steps`, `ramp_steps` and `highest` of `classification_weight`.
            total_steps: At which the training will end.
            seed: Decides, with the step, all draws.
            device: Where networks compute.
        """
        self.network, self.stream, self.shares, self.ramp = autoencoder, stream, shares, ramp
        self.total_steps, self.seed, self.device = total_steps, seed, device

    def losses(self, step: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The mean loss of the batch; what it is made of, and the weight of the classification, as metrics."""
        images, labels = (part.to(self.device) for part in self.stream.batch(step))
        weight = classification_weight(step, total_steps=self.total_steps, **self.ramp)
        mask = self._mask(images, mix(self.seed, step, MASK))
        losses, metrics = masked_loss(self.network, images, labels, mask, weight=weight)
        means = {name: value.mean() for name, value in metrics.items()}
        yield losses.mean(), {**means, "classification_weight": torch.tensor(weight)}

    @torch.no_grad()
    def picture(self, network: nn.Module) -> tuple[Float[Tensor, "n c h w"], int]:
        """Ten images: whole, with what is hidden in grey, and as `network` fills them in; a row of each."""
        images = self.stream.first(SHOWN)[0].to(self.device)
        mask = self._mask(images, mix(self.seed, 0, PREVIEW))
        fold = self.network.encoder.fold
        folded, cells = network(images, mask)[0], mask.repeat_interleave(fold, 2).repeat_interleave(fold, 3)
        drawn = rearrange(folded, "b (p q c) h w -> b c (h p) (w q)", p=fold, q=fold)
        return torch.cat([images, images * (1 - cells), images * (1 - cells) + drawn * cells]), len(images)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the loss is a function of seed and step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""
        if state:
            raise ValueError(f"A masked auto-encoder has no state; got {sorted(state)}.")

    def _mask(self, images: Float[Tensor, "b c h w"], seed: int) -> Float[Tensor, "b 1 h2 w2"]:
        source = torch.Generator(self.device).manual_seed(seed)
        size, (low, high) = images.shape[-1] // self.network.encoder.fold, self.shares
        return draw_mask(len(images), size=size, cell=self.network.mask_cell, low=low, high=high, generator=source)
