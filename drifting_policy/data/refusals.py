"""Sentences about data that cannot be read, which every reader shares."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from drifting_policy.types import DatasetError, UserError


@contextmanager
def reading(place: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library finds wrong in the file or folder `place` into a DatasetError of one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DatasetError(f"{place} is not a readable {kind} ({type(error).__name__}: {first_line(error)}).") from error


def choose_keys(keys: Sequence[str] | None, known: Collection[str], place: Path, *, prefix: str = "") -> list[str]:
    """`keys`, or all that are known, sorted.

    Raises:
        DatasetError: names a key that is not there, those that are, and the closest of them; `prefix` stands before the key.
    """
    wanted = sorted(known) if keys is None else list(keys)
    for key in wanted:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise DatasetError(f"{place} has no array {prefix}{key}; it has {sorted(known)}.{hint}")
    return wanted


def inside(folder: Path, relative: str) -> Path:
    """The file that a data set calls `relative`, which must lie in the data set's own folder.

    Raises:
        DatasetError: where the name leads out of the folder, or there is no such file.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\0" in relative:
        raise DatasetError(f"{folder} names a file outside its own folder: {relative!r}.")
    if not (folder / path).is_file():
        raise DatasetError(f"{folder} is incomplete: {relative} is missing.")
    return folder / path


def whole_number(values: Any, name: str, place: Path, *, least: int = 0) -> int:
    """The entry `name` of the JSON object `values`, a whole number of at least `least`.

    Raises:
        DatasetError: where it is missing or something else.
    """
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DatasetError(f"{place}: {name} must be a whole number of at least {least}; it is {value!r}.")
    return value


def first_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    return (str(error).splitlines() or [""])[0][:200]
