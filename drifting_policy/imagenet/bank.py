"""MemoryBank: the latest real images, from which the positives and the unconditional negatives of a step are drawn."""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting_policy.drift import SampleQueue

BYTE_SCALE = 127.5  # of -1..1 as 0..255


@final
class MemoryBank:
    """Two queues of raw images: the latest ones of every class, and the latest of any class (arXiv 2602.04770, appendix A.8).

    Features are not kept but computed anew in every step. The images lie in main memory; as bytes they take a quarter of the
    room, which loses nothing of pixels that were bytes before.

    Attributes:
        by_class: The queue of every class.
        overall: The queue of all images, as that of a single class.
    """

    def __init__(
        self, *, classes: int, per_class: int, overall: int, image_shape: tuple[int, int, int], as_bytes: bool = False
    ) -> None:
        """An empty bank.

        Args:
            classes: Number of classes.
            per_class: Images that are kept of each class.
            overall: Images that are kept whatever their class.
            image_shape: Channels, height and width.
            as_bytes: Whether images are pixels in [-1, 1], kept as 0..255.

        Raises:
            ValueError: a size below 1.
        """
        self.as_bytes = as_bytes
        kind = torch.uint8 if as_bytes else torch.float32
        self.by_class = SampleQueue(num_conditions=classes, capacity=per_class, sample_shape=image_shape, dtype=kind)
        self.overall = SampleQueue(num_conditions=1, capacity=overall, sample_shape=image_shape, dtype=kind)

    def add(self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> None:
        """Store images in order; a full queue forgets its oldest ones.

        Raises:
            ValueError: images of another shape, or a class that does not exist.
        """
        kept = (images * BYTE_SCALE + BYTE_SCALE).round().clamp(0, 255).to(torch.uint8) if self.as_bytes else images
        self.by_class.add(kept, labels)
        self.overall.add(kept, torch.zeros_like(labels))

    def positives(self, labels: Int[Tensor, " b"], count: int, *, generator: torch.Generator) -> Float[Tensor, "b p c h w"]:
        """`count` random images of the class of each label: distinct ones where the bank has so many, else with repetition.

        Raises:
            ValueError: a class of which the bank has no image at all.
        """
        return self._images(self.by_class.sample(labels, count, generator=generator))

    def unconditional(self, labels: int, count: int, *, generator: torch.Generator) -> Float[Tensor, "b n c h w"]:
        """`count` random images of any class for each of so many `labels`; `count` may be 0.

        Raises:
            ValueError: where the bank is empty.
        """
        if count == 0:
            return torch.zeros(labels, 0, *self.overall.samples.shape[2:])
        return self._images(self.overall.sample(torch.zeros(labels, dtype=torch.int64), count, generator=generator))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Copies of all that the bank holds."""
        return {"by_class": self.by_class.state_dict(), "overall": self.overall.state_dict()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state of another bank.
            KeyError: a state that lacks one of the two queues.
        """
        self.by_class.load_state_dict(state["by_class"])
        self.overall.load_state_dict(state["overall"])

    def _images(self, kept: Tensor) -> Tensor:
        return kept.float() / BYTE_SCALE - 1 if self.as_bytes else kept
