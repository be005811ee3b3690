"""Images drawn by a generator: each follows from its seed, class and number alone, whatever is drawn beside it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.types import CheckpointError


def draw_noise(
    generator: ImageGenerator, *, seed: int, label: int, index: int
) -> tuple[Float[Tensor, "c h w"], Int[Tensor, " m"]]:
    """The noise and style of image number `index` of the class `label`, on the CPU; all three numbers are at least 0."""
    state = np.random.SeedSequence([seed, label, index]).generate_state(1, np.uint64)
    source = torch.Generator().manual_seed(int(state[0]))
    return torch.randn(generator.image_shape, generator=source), generator.draw_style(1, source)[0]


def draw_images(
    generator: ImageGenerator, places: Sequence[tuple[int, int]], *, cfg_scale: float, seed: int, batch: int
) -> Iterator[Float[Tensor, "b out h w"]]:
    """The images at `places`, pairs of class and number, in batches of at most `batch`, on the device of the generator.

    Which images share a batch changes nothing but the rounding of the last bits. Images are in the units of the training data.

    Raises:
        CheckpointError: the generator draws NaN or infinity.
    """
    device = generator.positions.device
    for begin in range(0, len(places), batch):
        part = places[begin : begin + batch]
        drawn = [draw_noise(generator, seed=seed, label=label, index=index) for label, index in part]
        noise, style = (torch.stack(values).to(device) for values in zip(*drawn, strict=True))
        labels = torch.tensor([label for label, _ in part], device=device)
        scales = torch.full((len(part),), float(cfg_scale), device=device)
        with torch.no_grad():
            images = generator(noise, labels=labels, cfg_scale=scales, style=style)
        if not images.isfinite().all():
            raise CheckpointError("The generator draws NaN or infinity; its weights are of no use. Take another checkpoint.")
        yield images
