"""Demonstrations in the HDF5 layout of robomimic: data/demo_N/{actions, states, rewards, dones, obs/*, next_obs/*}, mask/*.

The layout is the one that robomimic 0.3 and later read: attributes `total` and `env_args` (JSON) of data, `num_samples` and
`model_file` (the MuJoCo XML of the episode) of each demonstration; masks are lists of names of demonstrations.
"""

import difflib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from drifting_policy.data.object_order import in_present_order
from drifting_policy.data.replay_buffer import ReplayBuffer
from drifting_policy.types import DatasetError

NAME = re.compile(r"demo_(\d+)")
EXACT = "states"  # kept in double precision, for a simulator restores it
STEPS = ("actions", "states", "rewards", "dones")
ENV_ARGS = ("env_name", "type", "env_kwargs")
BLOCK = 64  # images read at once


def open_robomimic(path: str | Path, keys: Sequence[str] | None = None, *, filter_key: str | None = None) -> ReplayBuffer:
    """The demonstrations in the file `path`, in the order of their numbers, with `keys` or all that every one of them has.

    A key is the name of an array of each step (`actions`, `states`, `rewards`, `dones`, `actions_abs`), or of an observation
    without "obs/". Floating-point arrays come as float32, except `states`, which a simulator restores; images (uint8 "h w c"
    per step) come as a memory map of the image cache; `object` comes in the order of robosuite 1.5, whichever version wrote it.

    Args:
        path: the file.
        keys: what to read.
        filter_key: the name of a list below mask/; only the demonstrations that it names are read.

    Raises:
        DatasetError: names the file, the demonstration, the key and the step at fault.
    """
    place = Path(path)
    with _opened(place) as file:
        demos = _demonstrations(file, place, filter_key)
        known = set.intersection(*(set(_arrays(demo)) for demo in demos.values()))
        wanted = sorted(known) if keys is None else list(keys)
        for key in wanted:
            if key not in known:
                raise DatasetError(_missing(key, known, demos, place))
        lengths = [_length(demo, f"{place}: {name}") for name, demo in demos.items()]
        arrays = {key: _concatenated(demos, lengths, key=key, place=place) for key in wanted}
        if "object" in arrays and "env_args" in file["data"].attrs:
            made = _env_args(file, place)
            world, version = str(made["env_name"]), str(made.get("env_version", ""))
            arrays["object"] = in_present_order(arrays["object"], world=world, version=version)
    return ReplayBuffer(arrays, np.cumsum(lengths).astype(np.int64), str(place))


def read_env_args(path: str | Path) -> dict[str, Any]:
    """What the file `path` says about its environment: `env_name`, `type`, `env_kwargs`, and mostly `env_version`.

    Raises:
        DatasetError: where the file says nothing of the kind.
    """
    place = Path(path)
    with _opened(place) as file:
        return _env_args(file, place)


def read_model_files(path: str | Path, *, filter_key: str | None = None) -> list[str]:
    """The MuJoCo XML of each demonstration, in the order of `open_robomimic`.

    Raises:
        DatasetError: names the demonstration that has none.
    """
    place = Path(path)
    with _opened(place) as file:
        models = {name: demo.attrs.get("model_file") for name, demo in _demonstrations(file, place, filter_key).items()}
    for name, model in models.items():
        if not isinstance(model, str):
            raise DatasetError(f"{place}: {name} has no attribute model_file, the XML of its model.")
    return [str(model) for model in models.values()]


def write_robomimic(
    path: str | Path,
    episodes: Iterable[Mapping[str, Any]],
    *,
    env_args: Mapping[str, Any],
    masks: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """The file written at `path`: demo_0, demo_1, ... in the order of `episodes`, which are stored one by one as they come.

    The file is written beside and renamed, and equal data give equal bytes.

    Args:
        path: the file.
        episodes: each maps `actions` "n d" in [-1, 1], `states` "n k", `rewards` "n", `dones` "n", `obs` and `next_obs` (arrays
            "n ..." by name), `model_file` (XML), and any other array "n ..." of each step, such as `actions_abs`.
        env_args: what robomimic makes the environment from: `env_name`, `type` (1: robosuite), `env_kwargs`, `env_version`.
        masks: numbers of episodes by the name of their list.

    Raises:
        DatasetError: names what does not fit, or says that the file system refuses.
    """
    target = Path(path)
    missing = [name for name in (*ENV_ARGS, "env_version") if name not in env_args]
    if missing:
        raise DatasetError(f"{target}: env_args needs {', '.join(missing)}.")
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(draft, "w") as file:
            data, total, count = file.create_group("data"), 0, 0
            for count, episode in enumerate(episodes, start=1):
                total += _write_episode(data, f"demo_{count - 1}", episode, target)
            if count == 0:
                raise DatasetError("There is no episode to store.")
            data.attrs["total"] = total
            data.attrs["env_args"] = json.dumps(dict(env_args), indent=4)
            for name, numbers in (masks or {}).items():
                if not all(0 <= number < count for number in numbers):
                    raise DatasetError(f"{target}: the mask '{name}' names episodes that do not exist: {sorted(numbers)}.")
                file[f"mask/{name}"] = np.array([f"demo_{number}" for number in numbers], dtype="S")
        draft.replace(target)
    except OSError as error:
        raise DatasetError(f"The data set {target} could not be written ({_first_line(error)}).") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return target


def copy_with_array(
    source: str | Path, target: str | Path, *, key: str, make: Callable[[Mapping[str, np.ndarray]], np.ndarray]
) -> Path:
    """A copy of the file `source` at `target` in which every demonstration has the array `key` that `make` returns.

    `make` gets the arrays of a demonstration that `STEPS` names, in their own precision. The copy is whole or absent.

    Raises:
        DatasetError: a file that cannot be read or written, or an array that does not fit its demonstration.
    """
    place, goal = Path(source), Path(target)
    draft = goal.with_name(f".{goal.name}.{os.getpid()}.draft")
    try:
        with _opened(place):
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, draft)
        with h5py.File(draft, "r+") as file:
            for name, demo in tqdm(_demonstrations(file, place, None).items(), desc=key):
                found = _arrays(demo)
                values = make({each: _read(found[each], f"{place}: {name}/{each}") for each in STEPS if each in found})
                _check_values(values, steps=_length(demo, f"{place}: {name}"), what=f"{goal}: {name}/{key}")
                if key in demo:
                    del demo[key]
                demo.create_dataset(key, data=values)
        draft.replace(goal)
    except OSError as error:
        raise DatasetError(f"The data set {goal} could not be written ({_first_line(error)}).") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return goal


def _write_episode(data: h5py.Group, name: str, episode: Mapping[str, Any], target: Path) -> int:
    """Store one demonstration; the number of its steps."""
    missing = [key for key in (*STEPS, "obs", "next_obs", "model_file") if key not in episode]
    if missing:
        raise DatasetError(f"{target}: {name} needs {', '.join(missing)}.")
    arrays = {key: np.asarray(value) for key, value in episode.items() if key not in ("obs", "next_obs", "model_file")}
    for group in ("obs", "next_obs"):
        arrays |= {f"{group}/{key}": np.asarray(value) for key, value in episode[group].items()}
    if set(episode["obs"]) != set(episode["next_obs"]) or not episode["obs"]:
        raise DatasetError(f"{target}: {name} must have the same observations in obs and next_obs, and at least one.")
    steps = len(arrays["actions"])
    for key, values in arrays.items():
        _check_values(values, steps=steps, what=f"{target}: {name}/{key}")
    if np.abs(arrays["actions"]).max() > 1:
        raise DatasetError(f"{target}: {name}/actions must lie in [-1, 1], as robomimic demands; put others in actions_abs.")
    demo = data.create_group(name)
    for key, values in arrays.items():
        demo.create_dataset(key, data=np.ascontiguousarray(values))
    demo.attrs["num_samples"] = steps
    demo.attrs["model_file"] = str(episode["model_file"])
    return steps


@contextmanager
def _opened(place: Path) -> Iterator[h5py.File]:
    """The file, open for reading; whatever HDF5 finds wrong in it becomes a DatasetError."""
    if not place.is_file():
        raise DatasetError(f"There is no data set at {place}.")
    try:
        with h5py.File(place, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                raise DatasetError(f"{place} has no group 'data': expected data/demo_0, data/demo_1, ... as robomimic writes.")
            yield file
    except DatasetError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, MemoryError) as error:
        raise DatasetError(f"{place} is not a readable HDF5 file ({type(error).__name__}: {_first_line(error)}).") from error


def _env_args(file: h5py.File, place: Path) -> dict[str, Any]:
    try:
        values = json.loads(file["data"].attrs.get("env_args"))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{place} holds no JSON in the attribute env_args of data ({error}).") from error
    missing = [name for name in ENV_ARGS if not isinstance(values, dict) or name not in values]
    if missing:
        raise DatasetError(f"{place}: the attribute env_args of data has no {', '.join(missing)}.")
    return dict(values)


def _demonstrations(file: h5py.File, place: Path, filter_key: str | None) -> dict[str, h5py.Group]:
    """The groups of the demonstrations by name, in the order of their numbers."""
    data = file["data"]
    names = list(data)
    if filter_key is not None:
        masks = file.get("mask")
        lists = list(masks) if isinstance(masks, h5py.Group) else []
        if filter_key not in lists:
            raise DatasetError(f"{place} has no filter key '{filter_key}'; it has {sorted(lists)}.{_hint(filter_key, lists)}")
        values = _read(masks[filter_key], f"{place}: mask/{filter_key}")
        if values.ndim != 1 or values.dtype.kind not in "SO":
            raise DatasetError(f"{place}: mask/{filter_key} must be a list of names of demonstrations.")
        names = sorted({value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()})
    if not names:
        raise DatasetError(f"{place} holds no demonstration{f' under mask/{filter_key}' if filter_key else ''}.")
    for name in names:
        if NAME.fullmatch(name) is None:
            raise DatasetError(f"{place}: demonstrations are named demo_0, demo_1, ...; there is a '{name}'.")
        if not _inside(data, name) or not isinstance(data[name], h5py.Group):
            raise DatasetError(f"{place} has no group data/{name}.")
    return {name: data[name] for name in sorted(names, key=lambda name: int(name.removeprefix("demo_")))}


def _arrays(demo: h5py.Group) -> dict[str, h5py.Dataset]:
    """The arrays of each step of a demonstration by key; links that lead out of the file are passed over."""
    found: dict[str, h5py.Dataset] = {}
    groups = [demo["obs"]] if _inside(demo, "obs") and isinstance(demo["obs"], h5py.Group) else []
    for group in (*groups, demo):
        inside = {key: group[key] for key in group if _inside(group, key)}
        found |= {key: value for key, value in inside.items() if isinstance(value, h5py.Dataset)}
    return found


def _inside(group: h5py.Group, key: str) -> bool:
    """Whether `key` is there, in this very file."""
    return key in group and isinstance(group.get(key, getlink=True), h5py.HardLink)


def _length(demo: h5py.Group, what: str) -> int:
    """Steps of a demonstration: the number that its attribute says, else the length of `actions`."""
    said = demo.attrs.get("num_samples")
    if isinstance(said, int | np.integer) and said > 0:
        return int(said)
    if said is None and isinstance(demo.get("actions"), h5py.Dataset) and demo["actions"].ndim and len(demo["actions"]):
        return len(demo["actions"])
    raise DatasetError(f"{what} must say its number of steps in the attribute num_samples; it says {said!r}.")


def _concatenated(demos: Mapping[str, h5py.Group], lengths: Sequence[int], *, key: str, place: Path) -> np.ndarray:
    """The array of all demonstrations for one key."""
    datasets = [_arrays(demo)[key] for demo in demos.values()]
    first, images = datasets[0], datasets[0].dtype == np.uint8 and datasets[0].ndim == 4
    for name, dataset, steps in zip(demos, datasets, lengths, strict=True):
        if dataset.ndim == 0 or dataset.shape[1:] != first.shape[1:] or len(dataset) != steps or dataset.dtype != first.dtype:
            raise DatasetError(
                f"{place}: {name}/{key} has shape {dataset.shape}, {dataset.dtype}; with the {steps} steps it has, "
                f"and like that of {next(iter(demos))}, it must be {(steps, *first.shape[1:])}, {first.dtype}."
            )
    if images:
        from drifting_policy.data.image_cache import cached_images

        def blocks() -> Iterator[np.ndarray]:
            for name, dataset in zip(demos, datasets, strict=True):
                _check_complete(dataset, f"{place}: {name}/{key}")
                for start in range(0, len(dataset), BLOCK):
                    yield dataset[start : start + BLOCK]

        return cached_images(source=place, key=_cache_key(key, demos), shape=(sum(lengths), *first.shape[1:]), blocks=blocks)
    parts = []
    for name, dataset, steps in zip(demos, datasets, lengths, strict=True):
        values = _read(dataset, f"{place}: {name}/{key}")
        if values.dtype.kind == "f" and key != EXACT:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and infinity is refused
                values = values.astype(np.float32)
        _check_values(values, steps=steps, what=f"{place}: {name}/{key}")
        parts.append(values)
    return np.concatenate(parts)


def _cache_key(key: str, demos: Mapping[str, Any]) -> str:
    """The key of images in the cache: other demonstrations of the same file are other images."""
    return f"{key}:{','.join(demos)}"


def _read(dataset: h5py.Dataset, what: str) -> np.ndarray:
    """All values of an array, none of which may be missing, for what was never written would read as zeros."""
    _check_complete(dataset, what)
    return np.asarray(dataset[...])


def _check_complete(dataset: h5py.Dataset, what: str) -> None:
    if dataset.is_virtual or dataset.external:
        raise DatasetError(f"{what} keeps its values in another file; copy them into this one.")
    if dataset.chunks is None:
        complete = dataset.id.get_storage_size() >= dataset.nbytes
    else:
        needed = math.prod(math.ceil(n / size) for n, size in zip(dataset.shape, dataset.chunks, strict=True))
        complete = dataset.id.get_num_chunks() == needed
    if not complete:
        raise DatasetError(f"{what} is incomplete: values were never written; copy the file again.")


def _check_values(values: np.ndarray, *, steps: int, what: str) -> None:
    """One finite number per element, and at least one step."""
    if values.dtype.kind not in "fiub":
        raise DatasetError(f"{what} must be numeric; got dtype {values.dtype}.")
    if values.ndim == 0 or values.size == 0 or len(values) != steps:
        raise DatasetError(f"{what} must have {max(steps, 1)} steps and no empty axis; its shape is {values.shape}.")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values).reshape(steps, -1).all(axis=1)).all():
        raise DatasetError(f"{what} holds NaN or infinity, first at step {int(np.argmin(finite))}.")


def _missing(key: str, known: Iterable[str], demos: Mapping[str, h5py.Group], place: Path) -> str:
    """The sentence about a key that not every demonstration has."""
    without = [name for name, demo in demos.items() if key not in _arrays(demo)]
    if len(without) < len(demos):
        return f"{place}: {without[0]} has no array '{key}', which other demonstrations have."
    advice = _hint(key, known)
    if key == "actions_abs":
        advice = " Make them of the deltas: python -m drifting_policy.datasets.robomimic absolute src=FILE dst=FILE."
    return f"{place} has no array '{key}'; its demonstrations have {sorted(known)}.{advice}"


def _hint(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
