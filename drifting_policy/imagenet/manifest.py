"""What a cache says about itself: what it was made from and how, its checksums, and whether it is complete."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from drifting_policy.atomic import write_json
from drifting_policy.imagenet.chunked import ChunkedArray
from drifting_policy.types import DatasetError

FORMAT = 1
MANIFEST = "manifest.json"


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides over the bytes of one split of a cache.

    Attributes:
        split: "train" or "test".
        source: Digest of the images it is made from.
        images: Their number, broken ones included.
        size: Height and width in pixels that they are cropped and resized to.
        rows: Shape of one row of each array: "pixels" (h, w, c), or "latents" and perhaps "mirrored" (c, h, w).
        dtype: Of these arrays: uint8, float32 or float16.
        vae: Identity of the autoencoder; None for pixels.
        seed: Of the latents' noise; None for pixels.
        chunk: Rows in one file.
    """

    split: str
    source: str
    images: int
    size: int
    rows: Mapping[str, list[int]]
    dtype: str
    vae: str | None
    seed: int | None
    chunk: int

    @property
    def kind(self) -> str:
        """ "pixels" or "latents", as in ImageSet."""
        return "pixels" if "pixels" in self.rows else "latents"

    def arrays(self, folder: Path, count: int) -> dict[str, ChunkedArray]:
        """The arrays of `count` images below `folder`."""
        return {
            name: ChunkedArray(folder / name, shape=(count, *shape), dtype=self.dtype, chunk=self.chunk)
            for name, shape in self.rows.items()
        }

    def difference(self, other: "Recipe") -> str:
        """In which fields another recipe differs, as words; empty if in none."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return ", ".join(f"{key} {mine[key]} instead of {theirs[key]}" for key in mine if mine[key] != theirs[key])


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The recipe of one split, and what came of it.

    Attributes:
        recipe: What it is made from, and how.
        place: What the user called the source.
        vae_name: What the user called the autoencoder.
        class_names: In the order of their labels.
        complete: Whether everything is written; until then the fields below are empty.
        count: Number of images, without broken ones.
        sha256: Checksums of the chunks of each array, labels included.
        names_sha256: Checksum of the file with the names of the images.
        skipped: For each broken image that was left out, why.
    """

    recipe: Recipe
    place: str
    vae_name: str | None
    class_names: list[str]
    complete: bool = False
    count: int = 0
    sha256: Mapping[str, list[str]] = field(default_factory=dict)
    names_sha256: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into `folder`, with a checksum of itself."""
        values = {"format": FORMAT, **dataclasses.asdict(self)}
        write_json(folder / MANIFEST, values | {"manifest_sha256": _checksum(values)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`.

    Raises:
        DatasetError: it is missing, damaged, changed by hand or of another version.
    """
    file = folder / MANIFEST
    try:
        values: dict[str, Any] = json.loads(file.read_text())
        if values.pop("manifest_sha256") != _checksum(values):
            raise ValueError("its checksum is another")
        if (version := values.pop("format")) != FORMAT:
            raise ValueError(f"it is of the format {version}, this version reads {FORMAT}")
        return Manifest(**values | {"recipe": Recipe(**values["recipe"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{file} is no manifest that can be read ({error}); remove the cache and build it again.") from error


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
