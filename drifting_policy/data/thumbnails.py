"""Thumbnails: images small enough to search among all of a data set for similar ones."""

import numpy as np

EDGE = 8  # px
BLOCK = 256  # images at a time


def thumbnails(images: np.ndarray, *, edge: int = EDGE) -> np.ndarray:
    """Images "n h w c" (uint8) as means over at most `edge` x `edge` equal parts, float32 in -1..1, "n edge edge c"."""
    height, width = (min(edge, size) for size in images.shape[1:3])
    rows, columns = (np.arange(count) * size // count for count, size in zip((height, width), images.shape[1:3], strict=True))
    pixels = np.outer(np.diff(rows, append=images.shape[1]), np.diff(columns, append=images.shape[2]))[..., None]
    small = np.empty((len(images), height, width, images.shape[3]), np.float32)
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        sums = np.add.reduceat(np.add.reduceat(block, rows, axis=1, dtype=np.uint32), columns, axis=2)
        small[start : start + BLOCK] = sums / (127.5 * pixels) - 1
    return small
