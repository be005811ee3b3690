"""ImageSet: labelled images or latents of a data set, and batches of them as networks take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor
from tqdm import tqdm

from drifting_policy.imagenet.decoding import check_broken, decode, tell_broken
from drifting_policy.imagenet.sources import ImageSource, open_sources
from drifting_policy.imagenet.store import is_cache, open_split, unfinished
from drifting_policy.types import ConfigError, DatasetError

SPLITS = ("train", "test")
KINDS = ("pixels", "latents")
IN_MEMORY = 2 << 30  # bytes of images that are held in memory; more belong into a cache, and stay there
COMMAND = "drifting_policy.imagenet.cache"


@runtime_checkable
class ImageArray(Protocol):
    """What an array of images must do: an ndarray, or one that reads its rows from a disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes, the first of which runs over images."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers."""
        ...

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Rows by a slice or a vector of integers."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images.

    Attributes:
        images: uint8 "n h w c" of the kind "pixels", or floating-point "n c h w" of the kind "latents"; perhaps on a disk.
        labels: Indices of `class_names`.
        class_names: In the order of their indices.
        kind: One of KINDS.
        mirrored: Latents of the images turned left to right, in the same order; None without them, and for pixels.
        vae: Identity of the autoencoder that the latents belong to; None for pixels.
        skipped: Names of the broken images that were left out.

    Raises:
        DatasetError: arrays that do not fit each other, or not the kind.
    """

    images: ImageArray
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    kind: str
    mirrored: ImageArray | None = None
    vae: str | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, dtype = self.images.shape, self.images.dtype
        if self.kind not in KINDS:
            raise DatasetError(f"The kind of an image set must be one of {KINDS}; got '{self.kind}'.")
        expected = "uint8 'n h w c'" if self.kind == "pixels" else "floating-point 'n c h w'"
        if len(shape) != 4 or 0 in shape or (dtype != np.uint8 if self.kind == "pixels" else dtype.kind != "f"):
            raise DatasetError(f"{self.kind.capitalize()} must be {expected} and no axis empty; got {dtype} {tuple(shape)}.")
        low, high = (int(self.labels.min()), int(self.labels.max())) if len(self.labels) else (0, 0)
        if len(self.labels) != shape[0] or low < 0 or high >= len(self.class_names):
            raise DatasetError(
                f"{shape[0]} images need as many labels below {len(self.class_names)}, the number of classes; got "
                f"{len(self.labels)} labels of {low} to {high}."
            )
        if self.mirrored is not None and (self.kind == "pixels" or self.mirrored.shape != shape):
            raise DatasetError(f"Only latents have mirrored ones, of the same shape {tuple(shape)}; got {self.mirrored.shape}.")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image in a batch."""
        _, *axes = self.images.shape
        return (axes[2], axes[0], axes[1]) if self.kind == "pixels" else (axes[0], axes[1], axes[2])

    def batch(
        self, rows: Sequence[int] | np.ndarray | Tensor, *, flip: Bool[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
        """The images at `rows`, float32, and their labels: pixels in [-1, 1], latents as they are stored.

        Args:
            rows: Numbers in [0, n), in any order, repeated or not.
            flip: Which of the images are turned left to right; of latents, the ones made from the mirror image. None: no image.

        Raises:
            ValueError: a row that does not exist, or a `flip` of another length.
            DatasetError: latents without mirrored ones are to be flipped.
        """
        chosen = np.asarray(rows, np.int64)
        if chosen.ndim != 1 or (chosen.size and (chosen.min() < 0 or chosen.max() >= len(self))):
            raise ValueError(f"rows must be a vector of numbers from 0 to {len(self) - 1}; got {rows}.")
        if flip is not None and len(flip) != len(chosen):
            raise ValueError(f"flip must say yes or no for each of the {len(chosen)} rows; got {len(flip)}.")
        turned = np.zeros(len(chosen), bool) if flip is None else flip.cpu().numpy()
        labels = torch.from_numpy(self.labels[chosen])
        values = self.images[chosen]
        if self.kind == "pixels":
            values[turned] = values[turned, :, ::-1]
            return to_floats(values), labels
        if turned.any():
            if self.mirrored is None:
                raise DatasetError(
                    "This cache holds no latents of mirrored images; build one with flips=true, or train without flips."
                )
            values[turned] = self.mirrored[chosen[turned]]
        return torch.from_numpy(values.astype(np.float32)), labels


def to_floats(images: UInt8[np.ndarray, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """Bytes 0..255 as float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(127.5).sub_(1)


def to_bytes(images: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """Images in [-1, 1] as bytes, rounded; what lies outside becomes 0 or 255. The inverse of `to_floats`."""
    levels = (images.float() + 1).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def open_images(
    place: str | Path, *, split: str = "train", size: int | None = None, vae: str | None = None, verify: bool = False
) -> ImageSet:
    """The images of one split at `place`.

    Args:
        place: A cache; or "cifar10" (below DRIFTING_POLICY_DATA), "digits" (of scikit-learn), a folder of classes or a zip file
            of one, which are decoded into memory, all of them.
        split: "train" or "test".
        size: Height and width in pixels that images are cropped and resized to; a cache must have been built with it. None: as
            they are.
        vae: Identity of the autoencoder (`latents.vae_identity`) that latents are expected of; None: of any, or pixels.
        verify: Whether all checksums of a cache are verified, not only some.

    Raises:
        ConfigError: an unknown split, or a size that is none.
        DatasetError: what is there is missing, damaged, not complete, too large for the memory, laid out otherwise, or a cache
            of another size or autoencoder.
        MissingPackage: the digits need scikit-learn.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {SPLITS}; got '{split}'.")
    if size is not None and size < 1:
        raise ConfigError(f"size must be at least 1 pixel; got {size}.")
    path = Path(place)
    if is_cache(path):
        return open_cached(path, split, size=size, vae=vae, verify=verify)
    if not path.exists() and unfinished(path).exists():
        raise DatasetError(
            f"The cache {place} is not complete; what there is of it lies in {unfinished(path)}. Run the command that makes it "
            "again: it goes on where it stopped."
        )
    if vae is not None:
        raise DatasetError(
            f"{place} holds no latents; build a cache of them with python -m {COMMAND} src={place} dst=FOLDER vae=..."
        )
    with open_sources(place) as sources:
        if split not in sources:
            raise DatasetError(f"{place} has no images of the split '{split}', only of {sorted(sources)}.")
        return decode_all(sources[split], size)


def open_cached(place: Path, split: str, *, size: int | None, vae: str | None, verify: bool) -> ImageSet:
    """One split of the cache at `place`, in memory if it is small; arguments and errors as in `open_images`."""
    manifest, stored = open_split(place, split, verify=verify)
    recipe = manifest.recipe
    if size not in (None, recipe.size):
        raise DatasetError(f"The cache {place} was built with size={recipe.size}; for size={size} build another one.")
    if vae is not None and vae != recipe.vae:
        made = f"latents of the autoencoder {manifest.vae_name} ({recipe.vae[:12]}...)" if recipe.vae else "pixels"
        raise DatasetError(
            f"The cache {place} holds {made}; expected are latents of the autoencoder with the checksum {vae[:12]}.... Build "
            f"them with python -m {COMMAND} src={manifest.place} dst=FOLDER size={recipe.size} vae=..."
        )
    arrays: dict[str, ImageArray] = {
        name: array[:] if len(array) * array.row_bytes <= IN_MEMORY else array for name, array in stored.items()
    }
    return ImageSet(
        images=arrays[recipe.kind],
        labels=stored["labels"][:],
        class_names=tuple(manifest.class_names),
        kind=recipe.kind,
        mirrored=arrays.get("mirrored"),
        vae=recipe.vae,
        skipped=tuple(manifest.skipped),
    )


def decode_all(source: ImageSource, size: int | None) -> ImageSet:
    """All images of `source` in memory; broken ones are named on the error output and left out.

    Raises:
        DatasetError: images of different sizes without a `size`, too many for the memory, or too many that are broken.
    """
    count, images = len(source.names), np.empty((0, 0, 0, 0), np.uint8)
    kept: list[int] = []
    broken: dict[int, str] = {}
    with tqdm(total=count, unit="image", desc=f"decoding {source.place}", disable=None) as bar:
        for position, result in decode(source, size):
            bar.update()
            if isinstance(result, str):
                broken[position] = result
                check_broken(source, broken)
                continue
            if not kept:
                images = _room(count, result.shape, source.place)
            if result.shape != images.shape[1:]:
                raise DatasetError(
                    f"{source.place}: {source.names[position]} is {result.shape[0]} pixels wide, others are {images.shape[1]}; "
                    "give size=N."
                )
            images[len(kept)] = result
            kept.append(position)
    tell_broken(source, broken)
    return ImageSet(
        images=images[: len(kept)],
        labels=source.labels[kept],
        class_names=source.class_names,
        kind="pixels",
        skipped=tuple(source.names[position] for position in broken),
    )


def _room(count: int, shape: tuple[int, ...], place: str) -> np.ndarray:
    if count * int(np.prod(shape)) > IN_MEMORY:
        raise DatasetError(
            f"{place}: {count} images of {shape[0]}x{shape[1]} pixels are too many for the memory; make a cache first: "
            f"python -m {COMMAND} src={place} dst=FOLDER size={shape[0]}."
        )
    return np.empty((count, *shape), np.uint8)
