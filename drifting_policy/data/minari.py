"""Data sets of Minari: HDF5 (one file), Arrow and Parquet (one folder an episode).

In every storage an episode has observations of one step more than it has actions; that last one, which nothing was done
about, is left out. Arrow and Parquet files pad everything else to that length.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from drifting_policy.data.columns import count_rows, pyarrow_module, values_of
from drifting_policy.data.image_cache import cached_images
from drifting_policy.data.pictures import BLOCK, decode_picture, in_blocks
from drifting_policy.data.refusals import choose_keys, reading, whole_number
from drifting_policy.data.replay_buffer import ReplayBuffer, as_float32
from drifting_policy.types import DatasetError

FILE, METADATA = "main_data.hdf5", "metadata.json"
STORAGES = ("hdf5", "arrow", "parquet")
INFOS = "infos/"
BYTES_PER_STORED = 1100  # beyond what deflate can do; an array that claims more would only fill the memory


class _Episode(Protocol):
    """One episode: steps, and for each key its rows (an array, or the bytes of one picture a row), the last observation too."""

    steps: int
    rows: Mapping[str, int]

    def read(self, key: str) -> Any:
        """What can be cut into rows: an array, a data set of HDF5, or a list of bytes."""
        ...


def open_minari(path: str | Path, keys: Sequence[str] | None = None) -> ReplayBuffer:
    """The data set in the folder `path` (or its folder data, or its file main_data.hdf5), with `keys` or all of them.

    Keys are `observations`, `actions`, `rewards`, `terminations`, `truncations`; parts of a Dict or Tuple space are joined to
    them by "/", as in `observations/agent_pos`. Infos come as `infos/...` where they are numbers of every step. Floating-point
    arrays come as float32; images, JPEG ones too, as memory maps "n h w c" of the image cache.

    Raises:
        DatasetError: names the file, the episode and the key at fault.
        MissingPackage: names the package that the storage needs.
    """
    place = Path(path)
    file = place if place.is_file() else None
    folder = place.parent if file else _data_folder(place)
    if folder is None:
        raise DatasetError(f"There is no Minari data set at {place}: expected data/{FILE} or data/{METADATA}.")
    with reading(place, "Minari data set"), ExitStack() as stack:
        metadata = _metadata(folder) if file is None or file.name == FILE else {}
        spaces = {name: _spaces(metadata.get(f"{name[:-1]}_space"), name) for name in ("observations", "actions")}
        shapes = {key: shape for space in spaces.values() for key, shape in space.items()}
        if file or (folder / FILE).is_file():
            opened = stack.enter_context(h5py.File(file or folder / FILE, "r"))
            episodes = _hdf5_episodes(opened, shapes, place)
        else:
            episodes = _arrow_episodes(folder, str(metadata.get("data_format")), shapes, metadata)
        said = metadata.get("total_episodes", len(episodes))
        if said != len(episodes) or not episodes:
            raise DatasetError(f"{place} is incomplete: {METADATA} says {said} episodes, and there are {len(episodes)}.")
        arrays = {key: _joined(episodes, key, place) for key in choose_keys(keys, _common_keys(episodes), place)}
        lengths = [episode.steps for episode in episodes]
    return ReplayBuffer(arrays, np.cumsum(lengths).astype(np.int64), str(place))


def _data_folder(place: Path) -> Path | None:
    for folder in (place / "data", place):
        if (folder / FILE).is_file() or ((folder / METADATA).is_file() and (folder / "0").is_dir()):
            return folder
    return None


def _metadata(folder: Path) -> dict[str, Any]:
    if not (folder / METADATA).is_file():
        return {}  # older releases kept it in attributes of the HDF5 file
    values = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("data_format", "hdf5") not in STORAGES:
        raise DatasetError(f"{folder / METADATA} must name a data_format, one of {', '.join(STORAGES)}.")
    return values


def _spaces(text: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the boxes in a space, given as Minari's JSON, by key."""
    shapes: dict[str, tuple[int, ...]] = {}
    todo = [(name, json.loads(text) if isinstance(text, str) else text)]
    while todo:
        key, space = todo.pop()
        if not isinstance(space, dict):
            continue
        parts = space.get("subspaces")
        if isinstance(parts, dict):
            todo += [(f"{key}/{part}", inner) for part, inner in parts.items()]
        elif isinstance(parts, list):
            todo += [(f"{key}/{part}", inner) for part, inner in enumerate(parts)]
        elif isinstance(shape := space.get("shape"), list) and all(type(n) is int and n > 0 for n in shape):
            shapes[key] = tuple(shape)
    return shapes


class _Hdf5Episode:
    """The group of one episode in an HDF5 file."""

    def __init__(self, group: h5py.Group, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
        self._what, self._shapes = what, shapes
        self._arrays: dict[str, h5py.Dataset] = {}
        self._collect(group, "")
        if "rewards" not in self._arrays:
            raise DatasetError(f"{what} has no array rewards.")
        self.rows = {key: len(array) for key, array in self._arrays.items()}
        self.steps = self.rows["rewards"]

    def _collect(self, group: h5py.Group, prefix: str) -> None:
        for name in group:
            key, what = prefix + name.removeprefix("_index_"), f"{self._what}/{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise DatasetError(f"{what} is kept in another place; copy the data set as a whole into one file.")
            item = group[name]
            if isinstance(item, h5py.Group):
                if key.count("/") > 32:
                    raise DatasetError(f"{what} is nested too deeply.")
                self._collect(item, f"{key}/")
            elif isinstance(item, h5py.Dataset) and item.ndim and _is_number(item):
                _check_stored(item, what)
                self._arrays[key] = item

    def read(self, key: str) -> Any:
        """The array; JPEG pictures as the list of their bytes."""
        array = self._arrays[key]
        varying = h5py.check_vlen_dtype(array.dtype) is not None
        # JPEG pictures that happen to be of one length are stored as a plain matrix of bytes.
        encoded = array.dtype == np.uint8 and array.ndim == 2 and len(self._shapes.get(key, ())) > 1
        return [np.asarray(row, np.uint8).tobytes() for row in array] if varying or encoded else array


def _is_number(array: h5py.Dataset) -> bool:
    return array.dtype.kind in "fiub" or h5py.check_vlen_dtype(array.dtype) == np.uint8


def _check_stored(array: h5py.Dataset, what: str) -> None:
    """Refuse arrays whose values lie in other files, were never written, or cannot be in the file."""
    if array.is_virtual or array.external:
        raise DatasetError(f"{what} keeps its values in another file; copy them into this one.")
    if array.size and array.nbytes > BYTES_PER_STORED * array.id.get_storage_size():
        raise DatasetError(f"{what} is incomplete: of {array.nbytes} bytes, {array.id.get_storage_size()} are in the file.")


def _hdf5_episodes(file: h5py.File, shapes: Mapping[str, tuple[int, ...]], place: Path) -> list[_Episode]:
    for name in file:
        if re.fullmatch(r"episode_\d+", name) is None or not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise DatasetError(f"{place} must hold episode_0, episode_1, ... and nothing else; there is '{name}'.")
    for number in range(len(file)):
        if not isinstance(file.get(f"episode_{number}"), h5py.Group):
            raise DatasetError(f"{place} is incomplete: there is no group episode_{number}.")
    return [_Hdf5Episode(file[f"episode_{number}"], shapes, f"{place}: episode_{number}") for number in range(len(file))]


class _ArrowEpisode:
    """The folder of one episode in Arrow or Parquet storage; its table is opened whenever it is needed."""

    def __init__(self, folder: Path, storage: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._files = sorted(folder.glob(f"*.{storage}"))
        self._folder, self._storage, self._shapes = folder, storage, shapes
        if not self._files:
            raise DatasetError(f"{folder} is incomplete: it holds no *.{storage} file.")
        columns = self._columns()
        if "rewards" not in columns:
            raise DatasetError(f"{folder} has no column rewards.")
        self.rows = {key: len(column) for key, column in columns.items() if _is_readable(column)}
        self.steps = len(columns["rewards"]) - 1
        if (folder / METADATA).is_file():
            said = json.loads((folder / METADATA).read_text(encoding="utf-8"))
            if whole_number(said, "total_steps", folder) != self.steps:
                raise DatasetError(f"{folder} is incomplete: {METADATA} says {said['total_steps']} steps of {self.steps}.")

    def _columns(self) -> dict[str, Any]:
        """Columns and the parts of structures, by key."""
        arrow, tables = pyarrow_module("lib"), []
        for file in self._files:
            if self._storage == "parquet":
                count_rows([file])
                tables.append(pyarrow_module("parquet").read_table(file, use_threads=False, partitioning=None))
            else:
                tables.append(pyarrow_module("ipc").open_file(pyarrow_module("lib").memory_map(str(file))).read_all())
        table = arrow.concat_tables(tables).combine_chunks()
        found, todo = {}, [(name, table.column(name).combine_chunks()) for name in table.column_names]
        while todo:
            key, column = todo.pop()
            if isinstance(column, arrow.ChunkedArray):
                column = column.chunk(0)
            if isinstance(column, arrow.StructArray):
                todo += [(f"{key}/{field.name}", column.field(field.name)) for field in column.type]
            else:
                found[key] = column
        return found

    def read(self, key: str) -> Any:
        """The array in the shape of its space; pictures as the list of their bytes."""
        column, what = self._columns()[key], f"{self._folder}: {key}"
        if _is_bytes(column):
            return column.to_pylist()
        values = values_of(column, what)
        shape = self._shapes.get(key, values.shape[1:])
        if np.prod(shape, dtype=object) != np.prod(values.shape[1:], dtype=object):
            raise DatasetError(f"{what} must have shape {shape} per step, as {METADATA} says; it has {values.shape[1:]}.")
        return values.reshape(len(values), *shape)


def _is_bytes(column: Any) -> bool:
    arrow = pyarrow_module("lib")
    return isinstance(column, arrow.BinaryArray | arrow.LargeBinaryArray)


def _is_readable(column: Any) -> bool:
    """Whether a column holds numbers, lists of numbers, or bytes."""
    types, kind = pyarrow_module("types"), column.type
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or _is_bytes(column))


def _arrow_episodes(
    folder: Path, storage: str, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any]
) -> list[_Episode]:
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    whole_number(metadata, "total_episodes", folder, least=1)
    if numbers != list(range(len(numbers))):
        raise DatasetError(f"{folder} must hold an episode in each of the folders 0, 1, ...; there are {numbers[:20]}.")
    return [_ArrowEpisode(folder / str(number), storage, shapes) for number in numbers]


def _common_keys(episodes: Sequence[_Episode]) -> set[str]:
    """Keys that every episode has; infos only where they are of every step."""
    common = set.intersection(*(set(episode.rows) for episode in episodes))
    odd = {
        key
        for key in common
        if key.startswith(INFOS) and any(episode.rows[key] not in (episode.steps, episode.steps + 1) for episode in episodes)
    }
    return common - odd


def _joined(episodes: Sequence[_Episode], key: str, place: Path) -> np.ndarray:
    """The rows of all episodes for one key, without the last observations."""
    for number, episode in enumerate(episodes):
        if episode.rows[key] not in (episode.steps, episode.steps + 1) or not episode.steps:
            raise DatasetError(f"{place}: {key} of episode {number} has {episode.rows[key]} rows for {episode.steps} steps.")
    what = f"{place}: {key}"
    first = episodes[0].read(key)
    if isinstance(first, list):
        height, width, channels = decode_picture(first[0], what).shape
    elif first.ndim == 4 and first.dtype == np.uint8 and first.shape[3] in (1, 3, 4):
        height, width, channels = first.shape[1:]
    else:
        parts = [np.asarray(episode.read(key)[: episode.steps]) for episode in episodes]
        for number, part in enumerate(parts):
            if part.shape[1:] != parts[0].shape[1:]:
                raise DatasetError(f"{what} of episode {number} has shape {part.shape[1:]} per step, not {parts[0].shape[1:]}.")
        return as_float32(np.concatenate(parts))

    def pictures() -> Iterator[np.ndarray]:
        for number, episode in enumerate(episodes):
            rows = episode.read(key)
            for start in range(0, episode.steps, BLOCK):
                for row in rows[start : min(start + BLOCK, episode.steps)]:
                    yield decode_picture(row, f"{what} of episode {number}") if isinstance(row, bytes) else row

    steps = sum(episode.steps for episode in episodes)
    shape = (steps, height, width, channels)
    return cached_images(source=place, key=key, shape=shape, blocks=lambda: in_blocks(pictures(), what))
