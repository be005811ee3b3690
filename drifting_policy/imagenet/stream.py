"""ImageStream: the batches of a training, shuffled and augmented, as a pure function of (seed, step)."""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from drifting_policy.imagenet.crops import random_crops
from drifting_policy.imagenet.images import ImageSet
from drifting_policy.training.batches import Epochs, mix
from drifting_policy.types import ConfigError, DatasetError

AUGMENTED, FIRST = 1, 2  # what else a seed is mixed with: crops and flips of a step, images before the first step


@final
class ImageStream:
    """Batches of an image set for the steps of a training.

    Batch and augmentation of a step depend on seed and step alone, so a resumed run needs no saved position.
    """

    def __init__(self, images: ImageSet, *, batch_size: int, seed: int, flips: bool, smallest_crop: float = 1.0) -> None:
        """Serve `images`.

        Args:
            images: The data set.
            batch_size: Images per batch.
            seed: Decides, with the step, everything.
            flips: Whether half of the images are turned left to right.
            smallest_crop: The share of the area that random crops have at least; 1 for whole images.

        Raises:
            DatasetError: fewer images than one batch needs, or flips of latents that were not made.
            ConfigError: a share out of range, or crops of latents.
        """
        if not 1 <= batch_size <= len(images):
            raise DatasetError(f"The data set has {len(images)} images; a batch of {batch_size} cannot be made of them.")
        if not 0 < smallest_crop <= 1:
            raise ConfigError(f"task.data.smallest_crop must lie in (0, 1]; got {smallest_crop}.")
        if images.kind != "pixels" and smallest_crop < 1:
            raise ConfigError("Latents cannot be cropped; set task.data.smallest_crop=1.")
        if flips and images.kind != "pixels" and images.mirrored is None:
            raise DatasetError(
                "This cache holds no latents of mirrored images; build one with flips=true, or set task.data.flips=false."
            )
        self.images, self.seed, self.flips, self.smallest_crop = images, seed, flips, smallest_crop
        self.epochs = Epochs(len(images), batch_size=batch_size, seed=seed)

    def batch(self, step: int) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
        """Images, pixels in [-1, 1] or latents, and labels of the training step `step`, counted from 0."""
        generator = torch.Generator().manual_seed(mix(self.seed, step, AUGMENTED))
        return self._augmented(self.epochs.order(step), generator)

    def first(self, count: int) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
        """At most `count` images and labels, chosen at random, that are known before the first step."""
        generator = torch.Generator().manual_seed(mix(self.seed, 0, FIRST))
        return self._augmented(torch.randperm(len(self.images), generator=generator)[:count], generator)

    def _augmented(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self.images.batch(rows, flip=self._turned(len(rows), generator))
        if self.smallest_crop < 1:
            images = random_crops(images, smallest=self.smallest_crop, generator=generator)
        return images, labels

    def _turned(self, count: int, generator: torch.Generator) -> Bool[Tensor, " b"] | None:
        return torch.rand(count, generator=generator) < 0.5 if self.flips else None
