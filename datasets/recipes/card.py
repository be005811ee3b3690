"""The card beside a data set that a script made: what the file holds, where it comes from, and how to make it again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from drifting_policy.atomic import write_text
from drifting_policy.data.download import array_sha256
from drifting_policy.data.replay_buffer import write_replay
from drifting_policy.types import ConfigError
from drifting_policy.versions import versions

ENDING = ".zarr.zip"


def write_with_card(
    out: str, arrays: Mapping[str, np.ndarray], episode_ends: np.ndarray, *, origin: str, command: str, **more: Any
) -> Path:
    """The data set written as the file `out`, with a YAML card beside it; `more` goes into the card.

    Raises:
        ConfigError: where `out` does not end in .zarr.zip.
        DatasetError: where the data are not a proper data set, or the file system refuses.
    """
    if not out.endswith(ENDING):
        raise ConfigError(f"The data set is one file: its name must end in {ENDING}; got {out}.")
    file = write_replay(out, arrays, episode_ends)
    write_card(
        file,
        ending=ENDING,
        origin=origin,
        command=command,
        arrays=arrays,
        sha256={key: array_sha256(values) for key, values in {**arrays, "episode_ends": episode_ends}.items()},
        episodes=len(episode_ends),
        **more,
    )
    return file


def write_card(
    file: Path,
    *,
    ending: str,
    origin: str,
    command: str,
    arrays: Mapping[str, np.ndarray],
    sha256: Mapping[str, str],
    episodes: int,
    **more: Any,
) -> Path:
    """The card of the data set `file`, whose name ends in `ending`, as YAML beside it; `more` goes into it."""
    card = {
        "file": file.name,
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": "MIT",
        "origin": origin,
        "command": command,
        "arrays": {key: {"shape": list(values.shape), "dtype": str(values.dtype)} for key, values in arrays.items()},
        "array_sha256": dict(sha256),
        "episodes": episodes,
        **more,
        "versions": versions(),
    }
    place = file.with_name(file.name.removesuffix(ending) + ".yaml")
    write_text(place, OmegaConf.to_yaml(card))
    return place


def quantiles(values: Any) -> dict[str, float]:
    """Minimum, quartiles and maximum."""
    shares = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
    return {name: round(float(np.quantile(values, share)), 4) for name, share in shares.items()}
