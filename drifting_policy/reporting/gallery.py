"""The exhibits of an evaluation as they lie in its folder: an index, and beside it the films and pictures that it names."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy.reporting.media import KINDS
from drifting_policy.types import ConfigError

FOLDER, INDEX = "exhibits", "exhibits.json"


@dataclass(frozen=True)
class Fan:
    """Chunks "n t d" that were drawn for the observation at `step`, and the demonstrated one that is nearest to it."""

    step: int
    picture: Path
    spread: float
    chunks: np.ndarray
    nearest: np.ndarray | None


@dataclass(frozen=True)
class Exhibit:
    """An episode that was played again: its outcome, the files of its film and of its last frame, and its fans."""

    episode: Mapping[str, Any]
    film: Path
    end: Path
    fans: Sequence[Fan]


@dataclass(frozen=True)
class Exhibits:
    """The exhibits of the evaluation whose scores.json has this checksum; `contract` says what the chunks' numbers mean."""

    scores_sha256: str
    contract: Mapping[str, Any]
    shown: Sequence[Exhibit]


def read_exhibits(home: Path) -> Exhibits:
    """The exhibits in the folder `home`.

    Raises:
        ConfigError: where their index is damaged, or names files outside the folder.
    """
    try:
        content = load(home / INDEX)
        contract = {name: content[name] for name in ("unit", "control_hz", "first_executed", "exec_horizon", "picture")}
        contract |= {name: whole(contract[name]) for name in ("first_executed", "exec_horizon")}
        if (picture := contract["picture"]) is not None:
            contract["picture"] = {name: _numbers(picture[name], ndim=1) for name in ("low", "high")}
        return Exhibits(str(content["scores_sha256"]), contract, [_exhibit(home, row) for row in content["episodes"]])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"{home / INDEX} is damaged ({reason(error)}).") from error


def outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    """One episode, checked: its seed, scores, success and number of steps."""
    scores = {name: finite(row[name]) for name in ("max_score", "final_score")}
    return scores | {"seed": whole(row["seed"]), "steps": whole(row["steps"]), "success": bool(row["success"])}


def checksum(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ConfigError: where it holds none.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is damaged: it holds no object.")
    return content


def reason(error: Exception) -> str:
    """An error on one line, not too long a one."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def finite(value: Any) -> float:
    """`value` as a number that can be drawn."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def whole(value: Any) -> int:
    """`value` as an integer."""
    return value if isinstance(value, int) else int(finite(value))


def _exhibit(home: Path, row: Mapping[str, Any]) -> Exhibit:
    fans = [
        Fan(
            whole(fan["step"]),
            _inside(home, fan["picture"]),
            finite(fan["spread"]),
            _numbers(fan["chunks"], ndim=3),
            None if fan["nearest"] is None else _numbers(fan["nearest"], ndim=2),
        )
        for fan in row["fans"]
    ]
    return Exhibit(outcome(row), _inside(home, row["film"]), _inside(home, row["end"]), fans)


def _inside(home: Path, name: str) -> Path:
    """A film or picture of the folder; a page shows nothing else."""
    if Path(name).name != name or Path(name).suffix not in KINDS:
        raise ValueError(f"{name!r} is no film or picture in it")
    return home / name


def _numbers(values: Any, *, ndim: int) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != ndim or not array.size or not np.isfinite(array).all():
        raise ValueError(f"numbers of shape {array.shape}, or not finite")
    return array
