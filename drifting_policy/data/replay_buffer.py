"""ReplayBuffer: demonstrations in memory, in the layout of Diffusion Policy (data/<key>, meta/episode_ends)."""

import difflib
import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from drifting_policy.atomic import replace_folder
from drifting_policy.data.image_cache import cached_images
from drifting_policy.types import DatasetError

EPISODE_ENDS = "meta/episode_ends"
CHANNELS, SMALLEST_IMAGE = (1, 3, 4), 16  # an array of floats "n h w c" with these channels and this edge or more holds images
CHUNK_BYTES = 1 << 24  # of the chunks that are written
BLOCK = 64  # images that are decoded at a time, or more where the chunks of a store are larger


@dataclass(frozen=True)
class ReplayBuffer:
    """Arrays whose first axis runs over the steps of all episodes, one after the other.

    `episode_ends[i]` is the index one past the last step of episode i.
    """

    arrays: Mapping[str, np.ndarray]
    episode_ends: np.ndarray
    place: str = "memory"

    def __post_init__(self) -> None:
        _check_ends(self.episode_ends, self.place)
        for key, values in self.arrays.items():
            _check_array(key, values, self.episode_ends, self.place)

    @property
    def num_steps(self) -> int:
        """Steps in all episodes."""
        return int(self.episode_ends[-1])

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @property
    def starts(self) -> np.ndarray:
        """Index of the first step of each episode."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode."""
        return np.diff(self.episode_ends, prepend=0)

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """Views of the arrays of one episode."""
        return {key: values[self.starts[number] : self.episode_ends[number]] for key, values in self.arrays.items()}


def open_replay(path: str | Path, keys: Sequence[str] | None = None) -> ReplayBuffer:
    """The data set in a zarr store (v2 or v3, directory or .zip) at `path`, with `keys` or all of them, read into memory.

    Floating-point arrays come as float32. Images "n h w c", which are stored as uint8 or as floats that are whole numbers in
    0..255, come as a memory map, uint8, of the image cache.

    Raises:
        DatasetError: names the file, the key and the step at fault.
    """
    place = Path(path)
    if not place.exists():
        raise DatasetError(f"There is no data set at {place}.")
    store = None
    try:
        store = zarr.storage.ZipStore(place, mode="r") if place.is_file() else zarr.storage.LocalStore(place, read_only=True)
        root = zarr.open_group(store, mode="r")
        stored = _arrays_in(root, place)
        wanted = sorted(stored) if keys is None else list(keys)
        for key in wanted:
            if key not in stored:
                close = difflib.get_close_matches(key, stored, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                raise DatasetError(f"{place} has no array data/{key}; it has {sorted(stored)}.{hint}")
        ends = np.asarray(_whole(root, EPISODE_ENDS, place)[...])
        arrays = {key: _load(_whole(root, f"data/{key}", place), key, place) for key in wanted}
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{place} is not a readable zarr store ({type(error).__name__}: {_first_line(error)}).") from error
    finally:
        if store is not None:
            with suppress(AttributeError):  # of a zip file that could not be opened
                store.close()
    return ReplayBuffer(arrays, _as_ends(ends, place), str(place))


def write_replay(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    episode_ends: np.ndarray,
    *,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """The zarr v2 store written at `path`: a zip file where the name ends in .zip, else a directory.

    The data are checked first; the store is written beside and renamed, and equal data give equal bytes.

    Raises:
        DatasetError: where the data are not a proper data set, or the file system refuses.
    """
    target = Path(path)
    buffer = ReplayBuffer(dict(arrays), _as_ends(np.asarray(episode_ends), target), str(target))
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    packed = draft.with_suffix(".zip")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        root = zarr.open_group(draft, mode="w", zarr_format=2)
        root.attrs.update(dict(attributes or {}))
        for key, values in {f"data/{key}": v for key, v in buffer.arrays.items()}.items():
            chunks = (max(1, min(4096, len(values), CHUNK_BYTES // values[0].nbytes)), *values.shape[1:])
            # Chunks of zeros are stored like any other, for a missing one means a damaged data set.
            root.create_array(key, data=np.ascontiguousarray(values), chunks=chunks, config={"write_empty_chunks": True})
        root.create_array(EPISODE_ENDS, data=buffer.episode_ends)
        if target.suffix == ".zip":
            _zip(draft, packed)
            packed.replace(target)
        else:
            replace_folder(draft, target)
    except OSError as error:
        raise DatasetError(f"The data set {target} could not be written ({error}).") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if packed.exists():
            packed.unlink()
    return target


def concatenate(episodes: Iterable[Mapping[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Step-major arrays and episode ends of separate episodes with the same keys."""
    rows = list(episodes)
    if not rows:
        raise DatasetError("There is no episode to store.")
    arrays = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    return arrays, np.cumsum([len(next(iter(row.values()))) for row in rows]).astype(np.int64)


def _arrays_in(root: zarr.Group, place: Path) -> list[str]:
    if "data" not in root or not isinstance(root["data"], zarr.Group):
        raise DatasetError(f"{place} has no group 'data': expected data/<key> and {EPISODE_ENDS}.")
    if EPISODE_ENDS not in root:
        raise DatasetError(f"{place} has no array {EPISODE_ENDS}.")
    return [name for name, _ in root["data"].arrays()]


def _whole(root: zarr.Group, name: str, place: Path) -> zarr.Array:
    """The array `name`, none of whose chunks is missing."""
    array = root[name]
    if not isinstance(array, zarr.Array):
        raise DatasetError(f"{place}: {name} must be an array; it is a group.")
    # A chunk that was never written, or lost, would silently read as the fill value.
    unit = array.shards or array.chunks  # what one file holds
    files = math.prod(math.ceil(n / size) for n, size in zip(array.shape, unit, strict=True))
    found = array.nchunks_initialized * math.prod(array.chunks) // math.prod(unit)
    if found < files:
        raise DatasetError(
            f"{place} is incomplete: {name} has {found} of {files} chunks; copy it again, or, if chunks of zeros were left out "
            "on purpose, write it with write_empty_chunks=True."
        )
    return array


def _load(array: zarr.Array, key: str, place: Path) -> np.ndarray:
    """The values in memory, floats as float32; of images, the cache of them."""
    kind, shape = array.dtype.kind, tuple(array.shape)
    likely = len(shape) == 4 and shape[3] in CHANNELS and min(shape[1:3]) >= SMALLEST_IMAGE
    if 0 not in shape and len(shape) == 4 and (array.dtype == np.uint8 or (kind == "f" and likely)):
        return cached_images(source=place, key=f"data/{key}", shape=shape, blocks=lambda: _image_blocks(array, key, place))
    return _as_float32(np.asarray(array[...]))


def _image_blocks(array: zarr.Array, key: str, place: Path) -> Iterator[np.ndarray]:
    """The images in order, some chunks of the store at a time."""
    rows = (array.shards or array.chunks)[0]
    rows *= math.ceil(BLOCK / rows)
    for start in range(0, array.shape[0], rows):
        block = np.asarray(array[start : start + rows])
        with np.errstate(invalid="ignore"):  # what is no byte is refused
            images = block.astype(np.uint8)
        wrong = (images != block).reshape(len(block), -1).any(axis=1)
        if wrong.any():
            raise DatasetError(
                f"{place}: data/{key} looks like images, which must be uint8, or floats that are whole numbers in 0..255; "
                f"those of step {start + int(np.argmax(wrong))} are not. Store them as uint8."
            )
        yield images


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and infinity is refused
        return values.astype(np.float32) if values.dtype.kind == "f" else values


def _as_ends(ends: np.ndarray, place: str | Path) -> np.ndarray:
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise DatasetError(f"{place}: {EPISODE_ENDS} must be a list of integers; got {ends.dtype} of shape {ends.shape}.")
    return ends.astype(np.int64)


def _check_ends(ends: np.ndarray, place: str) -> None:
    if len(ends) == 0:
        raise DatasetError(f"{place}: {EPISODE_ENDS} is empty; a data set needs at least one episode.")
    lengths = np.diff(ends, prepend=0)
    if (lengths < 0).any():
        raise DatasetError(f"{place}: {EPISODE_ENDS} must ascend; entry {int(np.argmax(lengths < 0))} is below the one before.")
    if (lengths == 0).any():
        raise DatasetError(f"{place}: episode {int(np.argmax(lengths == 0))} is empty; remove it from {EPISODE_ENDS}.")


def _check_array(key: str, values: np.ndarray, ends: np.ndarray, place: str) -> None:
    if values.dtype.kind not in "fiub":
        raise DatasetError(f"{place}: data/{key} must be numeric; got dtype {values.dtype}.")
    if values.size == 0 or values.ndim < 1 or len(values) != ends[-1]:
        raise DatasetError(
            f"{place}: data/{key} must have {ends[-1]} steps, as {EPISODE_ENDS} says, and no empty axis; "
            f"its shape is {values.shape}."
        )
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1) if values.dtype.kind == "f" else np.zeros(1, bool)
    if bad.any():
        step = int(np.argmax(bad))
        episode = int(np.searchsorted(ends, step, side="right"))
        raise DatasetError(f"{place}: data/{key} holds NaN or infinity, first at step {step} (episode {episode}).")


def _zip(folder: Path, target: Path) -> None:
    """Pack `folder` uncompressed, in sorted order and without times, so that equal data give equal bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.writestr(zipfile.ZipInfo(file.relative_to(folder).as_posix()), file.read_bytes())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
