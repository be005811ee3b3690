"""The samples of an evaluation: which classes they are of, and drawing the blocks of them that are not there yet."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from drifting_policy.imagenet.feature_sets import Images
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.sample_blocks import SampleBlocks, SampleShard
from drifting_policy.imagenet.sampling import draw_images

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, lie evenly in [0, 1) however many they are


def sample_places(count: int, *, classes: int, shares: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Class and number within the class of the first `count` samples; those of a larger count begin alike.

    Args:
        count: Number of samples.
        classes: Number of classes; they take turns.
        shares: In which proportions they come instead.
    """
    index = np.arange(count)
    if shares is None:
        return list(zip((index % classes).tolist(), (index // classes).tolist(), strict=True))
    bounds = np.cumsum(shares) / np.sum(shares)
    labels = np.searchsorted(bounds[:-1], (index + 0.5) * GOLDEN % 1, side="right")
    return list(zip(labels.tolist(), index.tolist(), strict=True))


def place_labels(places: Sequence[tuple[int, int]]) -> Int64[np.ndarray, " n"]:
    """The classes alone."""
    return np.array([label for label, _ in places], np.int64)


def draw_blocks(
    generator: ImageGenerator,
    blocks: SampleBlocks,
    places: Sequence[tuple[int, int]],
    *,
    shard: SampleShard | None,
    decode: Callable[[Tensor], Images],
    cfg_scale: float,
    seed: int,
    batch: int,
    quiet: bool = False,
) -> int:
    """Draw those blocks of `shard` that are missing; the number of images drawn.

    Raises:
        CheckpointError: the generator draws NaN or infinity.
        ConfigError: the blocks cannot be written.
    """
    missing = blocks.missing(shard)
    total = sum(len(blocks.rows(block)) for block in missing)
    with tqdm(total=total, unit="image", desc="drawing", disable=True if quiet else None) as bar:
        for block in missing:
            rows = blocks.rows(block)
            parts = []
            for images in draw_images(generator, places[rows.start : rows.stop], cfg_scale=cfg_scale, seed=seed, batch=batch):
                parts.append(decode(images))
                bar.update(len(images))
            blocks.write(block, np.concatenate(parts))
    return total
