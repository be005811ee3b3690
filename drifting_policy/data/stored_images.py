"""Images in zarr arrays: recognised, and brought into the image cache chunk by chunk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr

from drifting_policy.data.image_cache import cached_images
from drifting_policy.types import DatasetError

ROWS = 64  # images that are read at once, where chunks are smaller
SMALLEST = 16  # px; smaller arrays of floating-point numbers are matrices


def holds_images(array: zarr.Array) -> bool:
    """Whether `array` holds images "n h w c": uint8, or as in the original Push-T floating-point numbers 0, 1, ... 255.

    Floating-point arrays are judged by their first image.
    """
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4) or 0 in array.shape:
        return False
    if array.dtype == np.uint8:
        return True
    if array.dtype.kind != "f" or min(array.shape[1:3]) < SMALLEST:
        return False
    first = np.asarray(array[:1])
    return bool(_are_levels(first) and first.max() > 1)


def read_images(array: zarr.Array, place: Path, key: str) -> np.ndarray:
    """The images as a read-only memory map "n h w c", uint8. No more than one chunk, or 64 images, is in memory at a time.

    Raises:
        DatasetError: where floating-point numbers are none of 0, 1, ... 255.
    """
    count, height, width, channels = array.shape

    def blocks() -> Iterator[np.ndarray]:
        rows = array.chunks[0] * max(1, ROWS // array.chunks[0])  # whole chunks, so that none is decoded twice
        for start in range(0, count, rows):
            values = np.asarray(array[start : start + rows])
            if array.dtype != np.uint8 and not _are_levels(values):
                bad = start + int(np.argmax([not _are_levels(image) for image in values]))
                raise DatasetError(f"{place}: data/{key} must be images of levels 0, 1, ... 255; step {bad} holds others.")
            yield values.astype(np.uint8, copy=False)

    return cached_images(source=place, key=f"data/{key}", shape=(count, height, width, channels), blocks=blocks)


def _are_levels(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all())
