"""Many images as one picture: row by row on white."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from drifting_policy.atomic import write_bytes
from drifting_policy.types import ConfigError, MissingPackage

GAP = 2  # px between images
SMALLEST = 64  # px; smaller images are enlarged by a whole factor


def write_sheet(file: str | Path, images: UInt8[np.ndarray, "n h w c"], *, columns: int) -> Path:
    """The PNG file `file`, which shows `images` in their order, `columns` in a row; whole or not at all.

    Images have one channel or three, and each pixel is drawn as a square of whole pixels where they are small.

    Raises:
        ConfigError: a name without .png, nothing to show, or a file that cannot be written.
        MissingPackage: Pillow is not installed.
    """
    target = Path(file)
    if target.suffix != ".png":
        raise ConfigError(f"The sheet is a PNG file: its name must end in .png; got {target}.")
    if columns < 1 or not images.size or images.shape[-1] not in (1, 3):
        raise ConfigError(f"A sheet shows grey or RGB images in at least one column; got {columns} columns, {images.shape}.")
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackage("Drawing a sheet needs Pillow: pip install 'drifting-policy[imagenet]'.") from error
    picture = io.BytesIO()
    Image.fromarray(tile(images, columns=columns)).save(picture, format="PNG")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, picture.getvalue())
    except OSError as error:
        raise ConfigError(f"The sheet {target} could not be written ({error.strerror or error}).") from error
    return target


def tile(images: UInt8[np.ndarray, "n h w c"], *, columns: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The picture that `write_sheet` writes."""
    count, height, width = images.shape[:3]
    factor = -(-SMALLEST // max(height, width))
    height, width, columns = height * factor + GAP, width * factor + GAP, min(columns, count)
    canvas = np.full((-(-count // columns) * height - GAP, columns * width - GAP, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * height, place % columns * width
        canvas[top : top + height - GAP, left : left + width - GAP] = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return canvas
