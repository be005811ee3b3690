"""Every format of demonstrations that is understood, found by the content of a path and never by its name."""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drifting_policy.data.replay_buffer import ReplayBuffer, open_replay, read_attributes
from drifting_policy.types import DatasetError, MissingPackage

ZARR_FILES = (".zgroup", ".zmetadata", "zarr.json")
ZIP, HDF5 = b"PK", b"\x89HDF\r\n\x1a\n"
MINARI = "main_data.hdf5"


@dataclass(frozen=True)
class Source:
    """One format: what it looks like, whether a path is of it, how it is opened, and at what rate (Hz) it was recorded."""

    looks_like: str
    detect: Callable[[Path], bool]
    open: Callable[[Path, Sequence[str] | None], ReplayBuffer]
    control_hz: Callable[[Path], float | None]


def find_source(path: str | Path) -> tuple[str, Source]:
    """Name and description of the format of `path`.

    Raises:
        DatasetError: where there is nothing, nothing that is understood, or what could be two things.
    """
    place = Path(path)
    try:
        if not place.exists():
            raise DatasetError(f"There is no data set at {place}.")
        found = [name for name, source in SOURCES.items() if source.detect(place)]
    except OSError as error:
        raise DatasetError(f"{place} cannot be read ({error}).") from error
    if len(found) == 1:
        return found[0], SOURCES[found[0]]
    known = "; ".join(f"{name}: {source.looks_like}" for name, source in SOURCES.items())
    if found:
        raise DatasetError(f"{place} could be {' or '.join(found)}; take away what does not belong there ({known}).")
    raise DatasetError(f"{place} is no data set that is understood. Understood are {known}.")


def open_source(path: str | Path, keys: Sequence[str] | None = None, *, filter_key: str | None = None) -> ReplayBuffer:
    """The data set at `path`, of any format in SOURCES, with `keys` or all of them.

    Floating-point arrays come as float32, images as read-only memory maps "n h w c", uint8. With `filter_key`, only the
    demonstrations that robomimic's list of that name holds are read.

    Raises:
        DatasetError: names the place, the key and the step at fault; of an unknown key, those that are there.
        MissingPackage: names the package that the format needs.
    """
    name, source = find_source(path)
    if filter_key is None:
        return source.open(Path(path), keys)
    if name != "robomimic":
        raise DatasetError(f"{path} is of the format {name}; only files of robomimic have a filter key '{filter_key}'.")
    return _open_robomimic(Path(path), keys, filter_key=filter_key)


def open_models(path: str | Path, *, filter_key: str | None = None) -> list[str]:
    """The XML of each episode's model in the file of robomimic at `path`.

    Raises:
        DatasetError: where it is no such file, or an episode has none.
        MissingPackage: names the package that the format needs.
    """
    if (name := find_source(path)[0]) != "robomimic":
        raise DatasetError(f"{path} is of the format {name}, which keeps no model of each episode.")
    with _packages("HDF5 files"):
        from drifting_policy.data.robomimic import read_model_files
    return read_model_files(path, filter_key=filter_key)


@contextmanager
def _packages(kind: str) -> Iterator[None]:
    """Around the import of a reader, whose packages are loaded only when its format is met."""
    try:
        yield
    except ImportError as error:
        raise MissingPackage(f"Reading {kind} needs {error.name}: pip install 'drifting-policy[formats]'.") from error


def _begins_with(place: Path, signature: bytes) -> bool:
    if not place.is_file():
        return False
    with place.open("rb") as file:
        return file.read(len(signature)) == signature


def _is_zarr(place: Path) -> bool:
    """A folder or zip file with a description of zarr in it; a zip file that is damaged is left to the reader."""
    if not _begins_with(place, ZIP):
        return any((place / name).is_file() for name in ZARR_FILES)
    try:
        with zipfile.ZipFile(place) as archive:
            return bool(set(ZARR_FILES) & set(archive.namelist()))
    except (zipfile.BadZipFile, ValueError, RuntimeError):
        return True


def _zarr_rate(place: Path) -> float | None:
    return _positive(read_attributes(place).get("control_hz"))


def _is_robomimic(place: Path) -> bool:
    """Any HDF5 file that is not Minari's; what it lacks, the reader says."""
    return _begins_with(place, HDF5) and not _is_minari(place)


def _open_robomimic(place: Path, keys: Sequence[str] | None, filter_key: str | None = None) -> ReplayBuffer:
    with _packages("HDF5 files"):
        from drifting_policy.data.robomimic import open_robomimic
    return open_robomimic(place, keys, filter_key=filter_key)


def _robomimic_rate(place: Path) -> float | None:
    with _packages("HDF5 files"):
        from drifting_policy.data.robomimic import read_env_args
    try:
        options = read_env_args(place)["env_kwargs"]
    except DatasetError:  # a file without environment is data all the same
        return None
    return _positive(options.get("control_freq") if isinstance(options, dict) else None)


def _is_lerobot(place: Path) -> bool:
    return (place / "meta" / "info.json").is_file()


def _open_lerobot(place: Path, keys: Sequence[str] | None) -> ReplayBuffer:
    from drifting_policy.data.lerobot import open_lerobot

    return open_lerobot(place, keys)


def _lerobot_rate(place: Path) -> float | None:
    from drifting_policy.data.lerobot import read_info

    return read_info(place).fps


def _is_minari(place: Path) -> bool:
    if place.is_file() and not _begins_with(place, HDF5):
        return False
    if place.is_dir() and not any((folder / MINARI).is_file() for folder in (place, place / "data")):
        return (place / "data" / "0").is_dir() and (place / "data" / "metadata.json").is_file()
    with _packages("HDF5 files"):
        import h5py
    if place.is_dir():
        return True
    try:
        with h5py.File(place, "r") as file:
            return any(name.startswith("episode_") for name in file)
    except (OSError, RuntimeError, ValueError):
        return False  # a damaged file


def _open_minari(place: Path, keys: Sequence[str] | None) -> ReplayBuffer:
    with _packages("Minari data"):
        from drifting_policy.data.minari import open_minari
    return open_minari(place, keys)


def _no_rate(place: Path) -> None:
    return None


def _positive(rate: object) -> float | None:
    return float(rate) if isinstance(rate, int | float) and 0 < rate < float("inf") else None


SOURCES: Mapping[str, Source] = {
    "zarr": Source("a folder or zip file with data/<key> and meta/episode_ends", _is_zarr, open_replay, _zarr_rate),
    "robomimic": Source("an HDF5 file with data/demo_0, data/demo_1, ...", _is_robomimic, _open_robomimic, _robomimic_rate),
    "lerobot": Source("a folder with meta/info.json of version 2 or 3", _is_lerobot, _open_lerobot, _lerobot_rate),
    "minari": Source(
        "a folder with data/main_data.hdf5, or with data/metadata.json and folders data/0, data/1, ...",
        _is_minari,
        _open_minari,
        _no_rate,
    ),
}
