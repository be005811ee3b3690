"""Caches of images or latents: written split by split so that an interruption costs one chunk, and opened with suspicion."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np
from tqdm import tqdm

from drifting_policy.atomic import write_text
from drifting_policy.imagenet.chunked import ChunkedArray, describe_group, file_sha256
from drifting_policy.imagenet.decoding import check_broken, decode, tell_broken
from drifting_policy.imagenet.manifest import MANIFEST, Manifest, Recipe, read_manifest
from drifting_policy.imagenet.sources import ImageSource
from drifting_policy.types import DatasetError

PROGRESS, NAMES = "progress.jsonl", "names.json"
SAMPLED = 4  # chunks of each array whose checksums are verified whenever a cache is opened
Encode = Callable[[np.ndarray, Sequence[int]], Mapping[str, np.ndarray]]


@final
@dataclass
class Progress:
    """What is written of a split: checksums of its chunks, where in the source the next one begins, and what was broken."""

    chunks: list[dict[str, str]] = field(default_factory=list)
    next: int = 0
    broken: dict[int, str] = field(default_factory=dict)


@final
@dataclass
class Block:
    """Images of consecutive positions of a source up to `end`, those that are broken apart."""

    end: int
    images: list[np.ndarray] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)


def unfinished(place: Path) -> Path:
    """Where a cache lies until it is complete and takes its place."""
    return place.with_name(f"{place.name}.partial")


def is_cache(place: Path) -> bool:
    """Whether `place` is a cache, complete or not."""
    return any((place / split / MANIFEST).is_file() for split in ("train", "test"))


def write_split(folder: Path, source: ImageSource, recipe: Recipe, encode: Encode, *, vae_name: str | None = None) -> Manifest:
    """Write the images of `source` into `folder`, or what is missing of them there, and return the complete manifest.

    Args:
        folder: Of the split.
        source: The images, of which recipe.source is the digest.
        recipe: How.
        encode: The arrays of recipe.rows for images uint8 "k h w c" and their positions in the source.
        vae_name: What the user called the autoencoder.

    Raises:
        DatasetError: the folder was begun with another recipe, too much of the source is broken, or the disk is full.
    """
    try:
        manifest = _begin(
            folder, Manifest(recipe=recipe, place=source.place, vae_name=vae_name, class_names=[*source.class_names])
        )
        if not manifest.complete:
            manifest = _finish(folder, source, manifest, _write_chunks(folder, source, recipe, encode))
        (folder / PROGRESS).unlink(missing_ok=True)
        return manifest
    except OSError as error:
        raise DatasetError(
            f"The cache in {folder} could not be written ({error}). Free some space and run the same command again: it goes on "
            "where it stopped."
        ) from error


def _begin(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest of what was begun in `folder`; where nothing was, that is `manifest`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).is_file():
        manifest.write(folder)
        return manifest
    begun = read_manifest(folder)
    if difference := begun.recipe.difference(manifest.recipe):
        raise DatasetError(
            f"{folder} was begun with other settings or other images: {difference}. Give those again, remove {folder.parent}, "
            "or choose another dst."
        )
    return begun


def _write_chunks(folder: Path, source: ImageSource, recipe: Recipe, encode: Encode) -> Progress:
    arrays, progress = recipe.arrays(folder, recipe.images), _read_progress(folder, recipe)
    with (
        tqdm(total=recipe.images, initial=progress.next, unit="image", desc=f"caching {recipe.split}") as bar,
        (folder / PROGRESS).open("a") as log,
    ):
        for block in _blocks(source, recipe, start=progress.next):
            progress.broken |= block.broken
            check_broken(source, progress.broken)
            if block.images:
                values = encode(np.stack(block.images), block.positions)
                sha256 = {name: array.write_chunk(len(progress.chunks), values[name]) for name, array in arrays.items()}
                line = {"chunk": len(progress.chunks), "next": block.end, "sha256": sha256, "broken": block.broken}
                progress.chunks.append(sha256)
                log.write(json.dumps(line) + "\n")
                log.flush()
            bar.update(block.end - progress.next)
            progress.next = block.end
    return progress


def _blocks(source: ImageSource, recipe: Recipe, *, start: int) -> Iterator[Block]:
    """The source from `start` on, cut so that all blocks but the last hold a chunk of whole images."""
    block = Block(end=start)
    for position, result in decode(source, recipe.size, start=start):
        block.end = position + 1
        if isinstance(result, str):
            block.broken[position] = result
            continue
        block.images.append(result)
        block.positions.append(position)
        if len(block.images) == recipe.chunk:
            yield block
            block = Block(end=block.end)
    yield block


def _read_progress(folder: Path, recipe: Recipe) -> Progress:
    """What is written already; the log loses what lies behind the last whole chunk."""
    arrays, progress, log = recipe.arrays(folder, recipe.images), Progress(), folder / PROGRESS
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    for index, text in enumerate(lines):
        recent = index >= len(lines) - SAMPLED  # older ones are verified when the cache is, should one want that
        try:
            line = json.loads(text)
            sha256, end = {name: str(line["sha256"][name]) for name in arrays}, int(line["next"])
            broken = {int(position): str(reason) for position, reason in line["broken"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            break
        damaged = (array.damage(index, sha256[name] if recent else None) for name, array in arrays.items())
        if line.get("chunk") != index or not text.endswith("\n") or any(damaged):
            break
        progress.chunks.append(sha256)
        progress.broken |= broken
        progress.next = end
    write_text(log, "".join(lines[: len(progress.chunks)]))
    return progress


def _finish(folder: Path, source: ImageSource, manifest: Manifest, progress: Progress) -> Manifest:
    """Write what is known only at the end: labels, names, descriptions, the complete manifest."""
    kept = [position for position in range(len(source.names)) if position not in progress.broken]
    arrays = manifest.recipe.arrays(folder, len(kept))
    labels = _labels(folder, len(kept))
    sha256 = {name: [written[name] for written in progress.chunks] for name in arrays}
    sha256["labels"] = [labels.write_chunk(0, source.labels[kept])]
    for array in (*arrays.values(), labels):
        array.describe()
    write_text(folder / NAMES, json.dumps([source.names[position] for position in kept], indent=0) + "\n")
    describe_group(folder)
    tell_broken(source, progress.broken)
    whole = replace(
        manifest,
        complete=True,
        count=len(kept),
        sha256=sha256,
        names_sha256=file_sha256(folder / NAMES),
        skipped={source.names[position]: reason for position, reason in progress.broken.items()},
    )
    whole.write(folder)
    return whole


def open_split(place: Path, split: str, *, verify: bool = False) -> tuple[Manifest, dict[str, ChunkedArray]]:
    """The manifest of one split of the cache at `place`, and its arrays, "labels" among them.

    All files are looked for, and the checksums of some are verified; with `verify`, of all.

    Raises:
        DatasetError: there is no such split, it is not complete, or something in it is not as it was written.
    """
    folder = place / split
    if not (folder / MANIFEST).is_file():
        raise DatasetError(f"The cache {place} has no images of the split '{split}'.")
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DatasetError(
            f"The cache {place} is not complete. Run the command that makes it again: it goes on where it stopped."
        )
    arrays = manifest.recipe.arrays(folder, manifest.count) | {"labels": _labels(folder, manifest.count)}
    try:
        found = next(_damages(folder, manifest, arrays, verify=verify), None)
    except OSError as error:
        raise DatasetError(f"The cache {place} cannot be read ({error}).") from error
    if found:
        raise DatasetError(f"{found}; remove the cache {place} and build it again.")
    return manifest, arrays


def _damages(folder: Path, manifest: Manifest, arrays: Mapping[str, ChunkedArray], *, verify: bool) -> Iterator[str]:
    """What is not as it was written, as far as one looks."""
    for name, array in arrays.items():
        if not array.described() or len(array.chunk_files) != len(manifest.sha256[name]):
            yield f"{array.folder} should be described to zarr as {name} of shape {array.shape}, {array.dtype}"
        files = len(array.chunk_files)
        sample = range(files) if verify else {*np.linspace(0, files - 1, SAMPLED).astype(int).tolist()}
        for index in tqdm(range(files), unit="file", desc=f"verifying {folder.name}/{name}", disable=not verify):
            if damage := array.damage(index, manifest.sha256[name][index] if index in sample else None):
                yield damage
    names = folder / NAMES
    if not names.is_file() or (verify and file_sha256(names) != manifest.names_sha256):
        yield f"{names} is not what was written"


def _labels(folder: Path, count: int) -> ChunkedArray:
    return ChunkedArray(folder / "labels", shape=(count,), dtype="int64", chunk=count)
