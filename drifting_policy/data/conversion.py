"""A data set of any known format, written as a zarr store."""

from collections.abc import Sequence
from pathlib import Path

from drifting_policy.data.replay_buffer import write_replay
from drifting_policy.data.sources import find_source
from drifting_policy.types import ConfigError

ENDINGS = (".zarr", ".zarr.zip")


def convert(source: str | Path, target: str | Path, keys: Sequence[str] | None = None) -> Path:
    """The zarr store `target` (a folder .zarr or a file .zarr.zip) with `keys` of the data set `source`, or all of them.

    It is written whole or not at all, and remembers the control rate where the source tells one.

    Raises:
        ConfigError: where `target` has another ending or is there already.
        DatasetError: where the source cannot be read or the target cannot be written.
    """
    place, written = Path(source), Path(target)
    if not written.name.endswith(ENDINGS):
        raise ConfigError(f"A data set is written as a folder .zarr or a file .zarr.zip; got {written}.")
    if written.exists():
        raise ConfigError(f"{written} is there already; remove it or choose another name.")
    name, format_ = find_source(place)
    buffer = format_.open(place, keys)
    rate = format_.control_hz(place)
    attributes = {"converted_from": name} | ({} if rate is None else {"control_hz": rate})
    return write_replay(written, buffer.arrays, buffer.episode_ends, attributes=attributes)
