"""Plays recorded actions open loop, scored as the episodes of a policy are: what cannot be replayed cannot be learnt."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from drifting_policy.rollout.episode import Episode
from drifting_policy.types import DatasetError, ObservationError


@dataclasses.dataclass(frozen=True)
class Replay:
    """One demonstration played open loop.

    `episode` is its outcome, with the number of the demonstration as seed. `deviation` holds, for each observation that was
    compared, the largest distance of an element from the recording; `largest` the largest value of each number that the
    environment told in its info, such as a coverage.
    """

    episode: Episode
    deviation: Mapping[str, float]
    largest: Mapping[str, float]


def replay(
    env: gymnasium.Env[Any, Any],
    actions: np.ndarray,
    *,
    number: int,
    options: Mapping[str, Any],
    recorded: Mapping[str, np.ndarray],
) -> Replay:
    """What came of `actions` "steps d" after `env.reset(seed=number, options=options)`; an end by the environment ends it.

    Args:
        env: gives dictionary observations.
        actions: at least one, raw units.
        number: of the demonstration.
        options: restore the state in which the demonstration began.
        recorded: arrays "steps k" that the first k elements of the observation of the same name, as it was before each action,
            are compared with.

    Raises:
        DatasetError: the environment refuses `options`.
        ObservationError: the environment has no such observation, or one with fewer elements.
    """
    observed: dict[str, list[np.ndarray]] = {name: [] for name in recorded}
    rewards: list[float] = []
    success, largest = False, dict[str, float]()
    try:
        obs, _ = env.reset(seed=number, options=dict(options))
    except ValueError as error:
        raise DatasetError(f"The environment cannot begin as demonstration {number} did: {error}") from error
    for action in actions:
        for name, values in observed.items():
            values.append(_first(obs, name, count=recorded[name].shape[1]))
        obs, reward, terminated, truncated, info = env.step(action)
        rewards.append(float(reward))
        success |= bool(info.get("success", False))
        for name, value in info.items():
            if isinstance(value, float | np.floating):
                largest[name] = max(float(value), largest.get(name, -np.inf))
        if terminated or truncated:
            break
    deviation = {
        name: float(np.abs(np.stack(values) - recorded[name][: len(values)].astype(np.float64)).max())
        for name, values in observed.items()
    }
    return Replay(Episode(number, max(rewards), rewards[-1], success, len(rewards)), deviation, largest)


def _first(obs: Any, name: str, *, count: int) -> np.ndarray:
    """The first `count` elements of one observation, as a copy in float64."""
    if not isinstance(obs, Mapping) or name not in obs:
        shown = sorted(obs) if isinstance(obs, Mapping) else type(obs).__name__
        raise ObservationError(f"The recording of '{name}' can be held against nothing: the environment gives {shown}.")
    flat = np.array(obs[name], np.float64).ravel()
    if flat.size < count:
        raise ObservationError(f"The recording of '{name}' has {count} elements to compare; the environment gives {flat.size}.")
    return flat[:count]
