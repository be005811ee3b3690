"""SampleSet: images to be judged, from an .npz file or a folder, whoever generated them."""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from drifting_policy.imagenet.feature_sets import Images, image_parts
from drifting_policy.imagenet.images import open_images, to_bytes
from drifting_policy.imagenet.pixels import SUFFIXES, BrokenImage, read_picture
from drifting_policy.types import DatasetError

PART = 512  # images that are read at a time
IMAGES, LABELS = ("arr_0", "images", "samples"), ("arr_1", "labels")  # names of arrays: of ADM's files, and of ours


@final
@dataclass(frozen=True)
class SampleSet:
    """Images in parts.

    Attributes:
        count: Number of images.
        parts: Begins anew to yield them, uint8 "n h w c" and any number at a time.
        labels: Their classes; None where nobody tells.
        class_names: What the labels stand for; empty where nobody tells.
    """

    count: int
    parts: Callable[[], Iterable[Images]]
    labels: Int64[np.ndarray, " n"] | None = None
    class_names: tuple[str, ...] = ()

    def of_classes(self, names: tuple[str, ...]) -> bool:
        """Whether the labels can be those of the classes `names`: by their names, or else by their number."""
        if self.class_names:
            return self.class_names == names
        return self.labels is not None and bool(self.labels.min() >= 0 and self.labels.max() < len(names))


def read_samples(place: Path) -> SampleSet:
    """The images at `place`.

    Args:
        place: An .npz file with images uint8 "n h w c" (arr_0 or images, as ADM's evaluation takes them) or samples "n c h w"
            in [-1, 1], and perhaps labels (arr_1 or labels); a folder of PNG or other image files of one size; or a folder of
            classes.

    Raises:
        DatasetError: there is nothing, it is damaged, or laid out otherwise.
    """
    if place.is_file() and place.suffix == ".npz":
        return _from_arrays(place)
    if not place.is_dir():
        raise DatasetError(f"There are no samples at {place}; give a file ending in .npz, or a folder of images.")
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    if files:
        return SampleSet(len(files), lambda: _decoded(files))
    images = open_images(place)
    return SampleSet(len(images), lambda: image_parts(images), images.labels, images.class_names)


def _from_arrays(file: Path) -> SampleSet:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            names = [next((name for name in known if name in arrays), None) for known in (IMAGES, LABELS)]
            images, labels = (None if name is None else arrays[name] for name in names)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"The samples {file} cannot be read ({error}).") from error
    if images is None:
        raise DatasetError(f"{file} holds none of the arrays {', '.join(IMAGES)}.")
    if images.ndim != 4 or 0 in images.shape:
        raise DatasetError(f"{file}: images must be uint8 'n h w c' or float 'n c h w'; got {images.dtype} {images.shape}.")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise DatasetError(f"{file}: labels must be {len(images)} integers; got {labels.dtype} {labels.shape}.")
    pixels = images if images.dtype == np.uint8 else _bytes(images, file)
    if pixels.shape[-1] not in (1, 3):
        raise DatasetError(f"{file}: images must have 1 or 3 channels; got {pixels.shape}. Latents are to be decoded first.")
    return SampleSet(len(pixels), lambda: _cut(pixels), None if labels is None else labels.astype(np.int64))


def _bytes(images: np.ndarray, file: Path) -> UInt8[np.ndarray, "n h w c"]:
    if images.dtype.kind != "f" or not np.isfinite(images).all():
        raise DatasetError(f"{file}: images must be uint8, or finite numbers in [-1, 1]; got {images.dtype}.")
    return to_bytes(torch.from_numpy(images.astype(np.float32)))


def _cut(images: Images) -> Iterator[Images]:
    return (images[first : first + PART] for first in range(0, len(images), PART))


def _decoded(files: list[Path]) -> Iterator[Images]:
    """The images of `files`; all must be like the first one."""
    shape = None
    for first in range(0, len(files), PART):
        decoded = [_pixels(file) for file in files[first : first + PART]]
        shape = shape or decoded[0].shape
        for file, pixels in zip(files[first:], decoded, strict=False):
            if pixels.shape != shape:
                raise DatasetError(f"{file} has the shape {pixels.shape}; {files[0].name} has {shape}, and all must be alike.")
        yield np.stack(decoded)


def _pixels(file: Path) -> UInt8[np.ndarray, "h w c"]:
    try:
        picture = read_picture(file.read_bytes(), name=str(file))
    except (OSError, BrokenImage) as error:
        raise DatasetError(f"The sample {file} cannot be read ({error}).") from error
    grey = picture.mode in ("1", "L")
    pixels = np.asarray(picture.convert("L" if grey else "RGB"), np.uint8)
    return pixels[..., None] if grey else pixels
