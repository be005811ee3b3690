"""Demonstrations of a task: found on disk or downloaded, checked, and brought into the shape that the task declares."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from drifting_policy.config import ArrayConfig, DataConfig, RestoreConfig, TaskConfig
from drifting_policy.data.derive import planar_keypoints, select_key
from drifting_policy.data.download import array_sha256, fetch, verify_arrays
from drifting_policy.data.replay_buffer import ReplayBuffer, read_attributes
from drifting_policy.data.sources import open_models, open_source
from drifting_policy.data.thumbnails import thumbnails
from drifting_policy.types import DatasetError, Stats

BUNDLED = "bundled://"


@dataclass(frozen=True)
class Demonstrations:
    """Step-major arrays: every observation key of the task, the action, and where asked for, what restores each step.

    Floats are float32, images uint8 and, of a data set on disk, a memory map. `models` holds the XML of the model of each
    episode, where the task restores it.
    """

    observations: Mapping[str, np.ndarray]
    action: np.ndarray
    episode_ends: np.ndarray
    states: Mapping[str, np.ndarray] = field(default_factory=dict)
    models: Sequence[str] = ()

    @property
    def stats(self) -> dict[str, Stats]:
        """Statistics of every key and of `action`; those of images are fixed."""
        observed = {
            key: Stats.of_images() if values.dtype == np.uint8 else Stats.of(values)
            for key, values in self.observations.items()
        }
        return observed | {"action": Stats.of(self.action)}

    @cached_property
    def searchable(self) -> Mapping[str, np.ndarray]:
        """The observations as what a search for similar ones can hold in memory: thumbnails in place of images."""
        return {key: thumbnails(values) if values.dtype == np.uint8 else values for key, values in self.observations.items()}


def load_demonstrations(task: TaskConfig, data: str, *, states: bool = False) -> Demonstrations:
    """The demonstrations `data` for `task`: a data set that the task names, or a path of any known format.

    With `states` they hold, for each reset option that the task declares under `restore`, the recorded value of every step.

    Raises:
        DatasetError: names the place and the key at fault, and what to do.
    """
    restore = task.restore if states else {}
    task = as_recorded(task) if is_recording(task, data) else task
    buffer, models = _open(task, data, restore=restore)
    arrays = dict(buffer.arrays)
    for key, body in task.keypoints.items():
        if key not in arrays:
            pose = select_key(arrays[body.source].astype(np.float64), key=key, shape=(3,), start=body.start)
            arrays[key] = planar_keypoints(pose, np.asarray(body.points)).astype(np.float32)

    def array(key: str, config: ArrayConfig) -> np.ndarray:
        values = arrays[config.source]
        if config.dtype == "uint8":
            return _images(values, key=key, config=config, place=buffer.place)
        return select_key(values, key=key, shape=tuple(config.shape), start=config.start).astype(np.float32)

    return Demonstrations(
        observations={key: array(key, config) for key, config in task.observations.items()},
        action=array("action", task.action),
        episode_ends=buffer.episode_ends,
        states={option: arrays[config.source] for option, config in restore.items()},
        models=models,
    )


def is_recording(task: TaskConfig, data: str) -> bool:
    """Whether `data` is the path of a run that a `RunRecorder` stored."""
    path = Path(data)
    return data not in task.data and (path / ".zattrs").is_file() and "run" in read_attributes(path)


def as_recorded(task: TaskConfig) -> TaskConfig:
    """The task for data that a controller recorded: there every array has the name and form that the policy knows it by."""
    observations = {key: replace(array, source=key, start=None) for key, array in task.observations.items()}
    return replace(task, observations=observations, action=replace(task.action, source="action", start=None), keypoints={})


def _images(values: np.ndarray, *, key: str, config: ArrayConfig, place: str) -> np.ndarray:
    """The images as they are: nothing may copy all of them."""
    if values.dtype != np.uint8 or values.shape[1:] != tuple(config.shape):
        raise DatasetError(
            f"{place}: data/{config.source} should be images of shape {tuple(config.shape)}, uint8, for '{key}'; it is "
            f"{values.dtype} of shape {values.shape[1:]}."
        )
    return values


def is_stored(task: TaskConfig, data: str) -> bool:
    """Whether the demonstrations are on this machine, so that loading them downloads nothing."""
    config = task.data.get(data)
    if config is None:
        return Path(data).exists()
    root = os.environ.get("DRIFTING_POLICY_DATA")
    below_root = root is not None and (Path(root) / config.path).exists()
    return config.path.startswith(BUNDLED) or below_root or _cached(config).exists()


def bundled(name: str) -> Path:
    """The file or folder `name` that travels with the package."""
    return Path(str(files("drifting_policy.bundled"))) / name


def _open(task: TaskConfig, data: str, *, restore: Mapping[str, RestoreConfig]) -> tuple[ReplayBuffer, Sequence[str]]:
    """The arrays that the task and `restore` need, keypoints only where they cannot be computed; and the models."""
    config = task.data.get(data)
    if config is None and not Path(data).exists():
        raise DatasetError(
            f"'{data}' is neither a data set of task {task.name} ({', '.join(sorted(task.data))}) nor a path that exists."
        )
    is_new = config is not None and not is_stored(task, data)
    path = Path(data) if config is None else _locate(config)
    sources = {array.source for array in (*task.observations.values(), task.action)} - set(task.keypoints)
    needed = sources | {body.source for body in task.keypoints.values()} | {each.source for each in restore.values()}
    chosen = config or DataConfig()
    buffer = open_source(path, sorted(needed), filter_key=chosen.filter_key)
    if is_new and not chosen.sha256:
        known = {key: array_sha256(values) for key, values in {**buffer.arrays, "episode_ends": buffer.episode_ends}.items()}
        print(f"{path} was fetched, and task {task.name} knows no checksums of it yet; they are {known}.", file=sys.stderr)
    verify_arrays(buffer, chosen.sha256)
    has_models = any(each.model for each in restore.values())
    return buffer, open_models(path, filter_key=chosen.filter_key) if has_models else ()


def _locate(config: DataConfig) -> Path:
    """Where the data set lies: in the package, at an absolute path, below DRIFTING_POLICY_DATA, or in the cache."""
    if config.path.startswith(BUNDLED):
        return bundled(config.path.removeprefix(BUNDLED))
    if Path(config.path).is_absolute():
        return Path(config.path)
    root = os.environ.get("DRIFTING_POLICY_DATA")
    if root is not None:
        path = Path(root) / config.path
        if path.exists():
            return path
        if config.url is None:
            raise DatasetError(f"DRIFTING_POLICY_DATA is {root}, which holds no {config.path}. {config.hint}".rstrip())
    if config.url is None:
        raise DatasetError(f"Set DRIFTING_POLICY_DATA to a folder that holds {config.path}. {config.hint}".rstrip())
    cached = _cached(config)
    return cached if cached.exists() else fetch(config.url, cached, member=config.member, relative=config.path)


def _cached(config: DataConfig) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drifting_policy"
    return cache / (config.member or config.path)
