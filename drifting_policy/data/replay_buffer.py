"""ReplayBuffer: demonstrations in memory, in the layout of Diffusion Policy (data/<key>, meta/episode_ends)."""

import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from drifting_policy.atomic import replace_folder
from drifting_policy.data.jpeg2000 import know_jpeg2000
from drifting_policy.data.refusals import choose_keys, reading
from drifting_policy.data.stored_images import holds_images, read_images
from drifting_policy.types import DatasetError

EPISODE_ENDS = "meta/episode_ends"
CHUNK_ROWS, CHUNK_BYTES = 4096, 1 << 23  # of a chunk that is written, at most
CHUNK_FILE = re.compile(r"c|(c[./])?\d+([./]\d+)*")  # its name below an array of zarr v2 or v3


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

    Floating-point arrays come as float32; images (`holds_images`) come as a memory map of the image cache.

    Raises:
        DatasetError: names the file, the key and the step at fault.
    """
    place = Path(path)
    with _opened(place) as root:
        stored = _arrays_in(root, place)
        ends = np.asarray(_complete(root, EPISODE_ENDS, place)[...])
        arrays = {}
        for key in choose_keys(keys, stored, place, prefix="data/"):
            array = _complete(root, f"data/{key}", place)
            arrays[key] = read_images(array, place, key) if holds_images(array) else as_float32(np.asarray(array[...]))
    return ReplayBuffer(arrays, _as_ends(ends, place), str(place))


def read_attributes(path: str | Path) -> dict[str, Any]:
    """What the zarr store at `path` says about itself.

    Raises:
        DatasetError: where it cannot be read.
    """
    place = Path(path)
    with _opened(place) as root:
        return dict(root.attrs)


def write_replay(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    episode_ends: np.ndarray,
    *,
    attributes: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """The zarr v2 store written at `path`: a zip file where the name ends in .zip, else a directory.

    `extra` are arrays that are no data of steps, under names of their own; `read_extra` reads them. The data are checked first;
    the store is written beside and renamed, and equal data give equal bytes.

    Raises:
        DatasetError: where the data are not a proper data set, or the file system refuses.
    """
    target = Path(path)
    buffer = ReplayBuffer(dict(arrays), _as_ends(np.asarray(episode_ends), target), str(target))
    _check_names(buffer.arrays, target)
    named = {f"data/{key}": values for key, values in buffer.arrays.items()}
    return write_arrays(target, {**named, EPISODE_ENDS: buffer.episode_ends, **(extra or {})}, attributes=attributes)


def write_arrays(target: Path, arrays: Mapping[str, np.ndarray], *, attributes: Mapping[str, Any] | None = None) -> Path:
    """The same for arrays that need not be a data set, by their names in the store; none may be empty.

    Raises:
        DatasetError: the file system refuses.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    packed = draft.with_suffix(".zip")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        root = zarr.open_group(draft, mode="w", zarr_format=2)
        root.attrs.update(dict(attributes or {}))
        for key, values in arrays.items():
            rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES * len(values) // values.nbytes))
            chunks = (min(rows, len(values)), *values.shape[1:])
            # Chunks of zeros are stored like any other, for a missing one means a damaged data set.
            root.create_array(key, data=np.ascontiguousarray(values), chunks=chunks, config={"write_empty_chunks": True})
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


def read_extra(path: str | Path, group: str) -> dict[str, np.ndarray]:
    """The arrays of a group that `write_replay` was given as extra, as they were, by their names below it.

    Raises:
        DatasetError: no store, no such group, or one that is damaged.
    """
    place = Path(path)
    with _opened(place) as root:
        found = root.get(group)
        if not isinstance(found, zarr.Group):
            raise DatasetError(f"{place} has no group '{group}'.")
        names = [name for name, item in found.members(max_depth=None) if isinstance(item, zarr.Array)]
        return {name: np.asarray(_complete(root, f"{group}/{name}", place)[...]) for name in names}


def concatenate(episodes: Iterable[Mapping[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Step-major arrays and episode ends of separate episodes with the same keys."""
    rows = list(episodes)
    if not rows:
        raise DatasetError("There is no episode to store.")
    arrays = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    return arrays, np.cumsum([len(next(iter(row.values()))) for row in rows]).astype(np.int64)


@contextmanager
def _opened(place: Path) -> Iterator[zarr.Group]:
    """The root of the store; whatever zarr finds wrong in it becomes a DatasetError."""
    if not place.exists():
        raise DatasetError(f"There is no data set at {place}.")
    know_jpeg2000()
    store: Any = None
    try:
        with reading(place, "zarr store"):
            zipped, folder = zarr.storage.ZipStore, zarr.storage.LocalStore
            store = zipped(place, mode="r") if place.is_file() else folder(place, read_only=True)
            yield zarr.open_group(store, mode="r")
    finally:
        if store is not None:
            with suppress(AttributeError):  # of a zip file that could not be opened
                store.close()


def _arrays_in(root: zarr.Group, place: Path) -> list[str]:
    if "data" not in root or not isinstance(root["data"], zarr.Group):
        raise DatasetError(f"{place} has no group 'data': expected data/<key> and {EPISODE_ENDS}.")
    if EPISODE_ENDS not in root:
        raise DatasetError(f"{place} has no array {EPISODE_ENDS}.")
    items = root["data"].members(max_depth=None)
    return [name for name, item in items if isinstance(item, zarr.Array)]


def _complete(root: zarr.Group, name: str, place: Path) -> zarr.Array:
    array = root[name]
    if not isinstance(array, zarr.Array):
        raise DatasetError(f"{place}: {name} must be an array; it is a group.")
    # A chunk that was never written, or lost, would silently read as the fill value.
    unit = array.shards or array.chunks  # what one file holds
    files = math.prod(math.ceil(n / size) for n, size in zip(array.shape, unit, strict=True))
    found = _count_chunk_files(place, name)
    if found < files:
        raise DatasetError(
            f"{place} is incomplete: {name} has {found} of {files} chunks; copy it again, or, if chunks of zeros were left out "
            "on purpose, write it with write_empty_chunks=True."
        )
    return array


def _count_chunk_files(place: Path, name: str) -> int:
    """How many files hold chunks of the array `name`: zarr's own count fails in a zip file where another name begins alike."""
    if place.is_file():
        with zipfile.ZipFile(place) as archive:
            names = {file.removeprefix(f"{name}/") for file in archive.namelist() if file.startswith(f"{name}/")}
    else:
        names = {file.relative_to(place / name).as_posix() for file in (place / name).rglob("*") if file.is_file()}
    return sum(CHUNK_FILE.fullmatch(each) is not None for each in names)


def as_float32(values: np.ndarray) -> np.ndarray:
    """`values`, in float32 where they are floating-point."""
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


def _check_names(keys: Iterable[str], target: Path) -> None:
    """Names become folders: none may lead out of the store, or into an array."""
    names = [key.split("/") for key in keys]
    for name in names:
        inner = any(other != name and other[: len(name)] == name for other in names)
        if inner or any(
            part in ("", ".", "..") or "\\" in part or "\0" in part or part.startswith(("__", ".z")) for part in name
        ):
            raise DatasetError(f"{target}: an array cannot be stored under the name {'/'.join(name)!r}; leave it out.")


def _zip(folder: Path, target: Path) -> None:
    """Pack `folder` uncompressed, in sorted order and without times, so that equal data give equal bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.writestr(zipfile.ZipInfo(file.relative_to(folder).as_posix()), file.read_bytes())
