"""Data sets of LeRobot: v3.0 (files of many episodes) and v2.0/v2.1 (one file an episode), with pictures and films.

Both keep numbers in Parquet files below data/ and describe themselves in meta/info.json. In v3.0, meta/episodes/*/*.parquet
says which rows of which file, and which seconds of which film, are an episode; in v2.x, meta/episodes.jsonl says how long
each is.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy.data.columns import count_rows, read_cells, read_columns
from drifting_policy.data.image_cache import cached_images
from drifting_policy.data.pictures import BLOCK, decode_picture, frames_at, in_blocks
from drifting_policy.data.refusals import choose_keys, inside, reading, whole_number
from drifting_policy.data.replay_buffer import ReplayBuffer, as_float32
from drifting_policy.types import DatasetError

INFO = "meta/info.json"
NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
FRAME_TOLERANCE = 0.25  # of the time between two steps; a nearest frame that is further away belongs to another step


@dataclass(frozen=True)
class Info:
    """What meta/info.json says: the layout (2 or 3), the rate, the sizes, and where the files of an episode lie."""

    place: Path
    layout: int
    fps: float
    episodes: int
    frames: int
    chunk_size: int
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str


@dataclass(frozen=True)
class _Episode:
    """Steps, the file with its rows, and for each film its file and the second of it at which the episode begins."""

    steps: int
    rows: Path
    films: Mapping[str, tuple[Path, float]]


def open_lerobot(path: str | Path, keys: Sequence[str] | None = None) -> ReplayBuffer:
    """The data set in the folder `path`, with `keys` or all of them.

    Keys are the names of the features as they are (`observation.state`, `action`). Floating-point arrays come as float32;
    pictures and films come as memory maps "n h w c" of the image cache. Films are matched by time: step i of an episode is the
    frame nearest to the episode's beginning + i / fps. Texts and depth images are not read; `task_index` is.

    Raises:
        DatasetError: names the file, the key and the step at fault.
        MissingPackage: names the package that a feature needs.
    """
    place = Path(path)
    info = read_info(place)
    wanted = choose_keys(keys, [key for key, feature in info.features.items() if _kind(feature)], place)
    with reading(place, "LeRobot data set"):
        films = [key for key in wanted if _kind(info.features[key]) == "video"]
        episodes = _EPISODES[info.layout](info, films)
        files = list(dict.fromkeys(episode.rows for episode in episodes))
        lengths = np.array([episode.steps for episode in episodes])
        _check_count(place, "steps", info.frames, int(lengths.sum()))
        _check_count(place, "steps", info.frames, count_rows(files))
        arrays = _numbers(info, files, [key for key in wanted if _kind(info.features[key]) == "number"], lengths)
        for key in wanted:
            if key not in arrays:
                pictures: Callable[[], Iterator[np.ndarray]] = (
                    partial(_film, info, episodes, key) if key in films else partial(_pictures, files, key)
                )
                arrays[key] = _images(info, key, pictures)
    return ReplayBuffer({key: arrays[key] for key in wanted}, np.cumsum(lengths).astype(np.int64), str(place))


def read_info(place: Path) -> Info:
    """What the data set in the folder `place` says about itself.

    Raises:
        DatasetError: where meta/info.json is missing, of another version, or says something impossible.
    """
    with reading(place, "LeRobot data set"):
        values = json.loads(inside(place, INFO).read_text(encoding="utf-8"))
        version = values.get("codebase_version") if isinstance(values, dict) else None
        found = re.fullmatch(r"v?([23])\.\d+", str(version))
        if found is None:
            raise DatasetError(f"{place} is a LeRobot data set of version {version!r}; v2.0, v2.1 and v3.0 can be read.")
        fps, features = values.get("fps"), values.get("features")
        if not isinstance(fps, int | float) or not 0 < fps < 1e6:
            raise DatasetError(f"{place}: fps in {INFO} must be a positive number; it is {fps!r}.")
        if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
            raise DatasetError(f"{place}: {INFO} describes no features.")
        return Info(
            place=place,
            layout=int(found[1]),
            fps=float(fps),
            episodes=whole_number(values, "total_episodes", place, least=1),
            frames=whole_number(values, "total_frames", place, least=1),
            chunk_size=whole_number(values, "chunks_size", place, least=1),
            features=features,
            data_path=str(values.get("data_path")),
            video_path=str(values.get("video_path")),
        )


def _kind(feature: Mapping[str, Any]) -> str:
    """`number`, `image`, `video`, or nothing for what is not read."""
    dtype, details = feature.get("dtype"), {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    if dtype in ("image", "video"):
        return "" if details.get("video.is_depth_map") or details.get("is_depth_map") else str(dtype)
    return "number" if dtype in NUMBERS else ""


def _episodes_in_files(info: Info, films: Sequence[str]) -> list[_Episode]:
    """The episodes of a v3.0 data set."""
    place = info.place
    files = sorted((place / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{place} is incomplete: meta/episodes/*/*.parquet is missing.")
    _check_count(place, "episodes", info.episodes, count_rows(files))
    numbers = ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    parts = ("chunk_index", "file_index", "from_timestamp")
    table = read_columns(files, [*numbers, *(f"videos/{key}/{part}" for key in films for part in parts)])
    order = np.argsort(table["episode_index"], kind="stable")
    table = {name: values[order] for name, values in table.items()}
    if (table["length"] < 1).any():
        raise DatasetError(f"{place}: episode {int(np.argmax(table['length'] < 1))} is empty.")
    starts = np.cumsum(table["length"]) - table["length"]
    for name, expected in (("episode_index", np.arange(info.episodes)), ("dataset_from_index", starts)):
        if (wrong := table[name] != expected).any():
            row = int(np.argmax(wrong))
            raise DatasetError(f"{place}: {name} of episode {row} must be {expected[row]}; it is {table[name][row]}.")

    def file(template: str, prefix: str, row: int, **names: str) -> Path:
        chunk, number = (int(table[f"{prefix}/{part}_index"][row]) for part in ("chunk", "file"))
        return _fill(info, template, chunk_index=chunk, file_index=number, **names)

    return [
        _Episode(
            steps=int(table["length"][row]),
            rows=file(info.data_path, "data", row),
            films={
                key: (
                    file(info.video_path, f"videos/{key}", row, video_key=key),
                    float(table[f"videos/{key}/from_timestamp"][row]),
                )
                for key in films
            },
        )
        for row in range(info.episodes)
    ]


def _episodes_in_lines(info: Info, films: Sequence[str]) -> list[_Episode]:
    """The episodes of a v2.x data set."""
    place = info.place
    lines = [json.loads(line) for line in inside(place, "meta/episodes.jsonl").read_text(encoding="utf-8").splitlines() if line]
    _check_count(place, "episodes", info.episodes, len(lines))
    steps = {whole_number(line, "episode_index", place): whole_number(line, "length", place, least=1) for line in lines}
    if sorted(steps) != list(range(info.episodes)):
        raise DatasetError(f"{place}: meta/episodes.jsonl must number its episodes 0 to {info.episodes - 1}.")

    def file(template: str, episode: int, **names: str) -> Path:
        return _fill(info, template, episode_chunk=episode // info.chunk_size, episode_index=episode, **names)

    return [
        _Episode(
            steps=steps[episode],
            rows=file(info.data_path, episode),
            films={key: (file(info.video_path, episode, video_key=key), 0.0) for key in films},
        )
        for episode in range(info.episodes)
    ]


_EPISODES: Mapping[int, Callable[[Info, Sequence[str]], list[_Episode]]] = {3: _episodes_in_files, 2: _episodes_in_lines}


def _fill(info: Info, template: str, **values: int | str) -> Path:
    """The file that a template such as data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet means."""

    def filled(match: re.Match[str]) -> str:
        name, width = match[1], int(match[2] or 0)
        if name not in values:
            raise DatasetError(f"{info.place}: the path {template!r} in {INFO} holds the unknown field {{{name}}}.")
        return str(values[name]).zfill(width)

    return inside(info.place, re.sub(r"\{(\w+)(?::0(\d)d)?\}", filled, template))


def _numbers(info: Info, files: Sequence[Path], keys: Sequence[str], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Numeric features; the rows must be those of the episodes, in order."""
    table = read_columns(files, list(dict.fromkeys([*keys, "episode_index", "frame_index"])))
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    expected = {"episode_index": np.repeat(np.arange(len(lengths)), lengths), "frame_index": np.arange(info.frames) - starts}
    for name, values in expected.items():
        if not np.array_equal(table[name], values):
            got = table[name].reshape(info.frames, -1)[:, 0]
            step = int(np.argmax(got != values))
            raise DatasetError(f"{info.place}: {name} of row {step} must be {values[step]}; it is {got[step]}.")
    return {key: as_float32(_shaped(info, key, table[key])) for key in keys}


def _shaped(info: Info, key: str, values: np.ndarray) -> np.ndarray:
    """`values` in the shape that info.json says; a feature of one number may be stored as that number."""
    said = tuple(info.features[key].get("shape") or ())
    if values.shape[1:] == said or (values.ndim == 1 and said == (1,)):
        return values
    if any(type(n) is not int for n in said) or np.prod(said, dtype=object) != np.prod(values.shape[1:], dtype=object):
        raise DatasetError(f"{info.place}: {key} must have shape {said} per step, as {INFO} says; it has {values.shape[1:]}.")
    return values.reshape(len(values), *said)


def _images(info: Info, key: str, pictures: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """The pictures of one feature, through the image cache."""
    first = next(iter(pictures()), None)
    if first is None:
        raise DatasetError(f"{info.place}: {key} holds no picture.")
    height, width, channels = first.shape
    said = info.features[key].get("shape")
    if said not in ([height, width, channels], [channels, height, width]):
        raise DatasetError(f"{info.place}: {key} must be pictures of {said}, as {INFO} says; they are {list(first.shape)}.")
    what = f"{info.place}: {key}"
    return cached_images(
        source=info.place,
        key=key,
        shape=(info.frames, height, width, channels),
        blocks=lambda: in_blocks(pictures(), what),
    )


def _pictures(files: Sequence[Path], key: str) -> Iterator[np.ndarray]:
    """Pictures kept as bytes in the rows of Parquet files."""
    for step, cell in enumerate(read_cells(files, key, rows=BLOCK)):
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        what = f"{files[0].parent}: {key} at step {step}"
        if not isinstance(data, bytes):
            raise DatasetError(f"{what} must be the bytes of a picture; it is {type(data).__name__}.")
        yield decode_picture(data, what)


def _film(info: Info, episodes: Sequence[_Episode], key: str) -> Iterator[np.ndarray]:
    """Frames of films, episode after episode; consecutive episodes of one film are decoded in one go."""
    for file, group in itertools.groupby(episodes, key=lambda episode: episode.films[key][0]):
        begun, last = [], -float("inf")
        for episode in group:
            times = episode.films[key][1] + np.arange(episode.steps) / info.fps
            if not times[0] > last:
                raise DatasetError(f"{file}: the episodes of {key} must follow each other; one begins at {times[0]} s.")
            last = times[-1]
            begun.append(times)
        yield from frames_at(file, np.concatenate(begun).tolist(), tolerance=FRAME_TOLERANCE / info.fps)


def _check_count(place: Path, what: str, said: int, found: int) -> None:
    if said != found:
        raise DatasetError(f"{place} is incomplete: {INFO} says {said} {what}, and there are {found}.")
