"""One episode in one environment: it begins with a seed, takes commands, and leaves its outcome."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium
import numpy as np

from drifting_policy.rollout.smoothness import smoothness, switches
from drifting_policy.types import ObservationError, PolicySpec, UserError, check_image


@dataclasses.dataclass(frozen=True)
class Episode:
    """Outcome of one episode.

    `max_score` is the largest and `final_score` the last reward; `success` says whether any step reported info["success"].
    `boundary_acceleration` and `boundary_jerk` are the largest of the commands where one plan took over from another, in raw
    action units per s² and s³; None where that was never, or is not known.
    """

    seed: int
    max_score: float
    final_score: float
    success: bool
    steps: int
    boundary_acceleration: float | None = None
    boundary_jerk: float | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """What one episode left: its outcome, its film and its trajectory; the latter two are empty unless asked for."""

    episode: Episode
    frames: list[np.ndarray]
    trajectory: dict[str, np.ndarray]


class Slot:
    """One environment and the episode that runs in it."""

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        spec: PolicySpec,
        *,
        max_steps: int,
        film_seeds: Collection[int],
        keep: bool,
        committed: int = 0,
    ) -> None:
        self._env = env
        self._spec = spec
        self._max_steps = max_steps
        self._film_seeds = film_seeds
        self._keep = keep
        self._committed = committed

    def begin(self, seed: int) -> None:
        """Starts the episode of `seed`; `obs` is its newest observation from now on."""
        self._seed = seed
        self._frames: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._commands: list[np.ndarray] = []
        self._success = False
        self._steps: dict[str, list[np.ndarray]] = {}
        self.obs = select(self._spec, self._env.reset(seed=seed)[0])
        self._shoot()

    def advance(self, action: np.ndarray) -> bool:
        """Whether the episode is over after `action`."""
        self._commands.append(action.copy())
        if self._keep:
            for key, value in (self.obs | {"action": action.copy()}).items():
                self._steps.setdefault(key, []).append(value)
        obs, reward, terminated, truncated, info = self._env.step(action)
        self.obs = select(self._spec, obs)
        self._rewards.append(float(reward))
        self._success |= bool(info.get("success", False))
        self._shoot()
        return bool(terminated or truncated or len(self._rewards) == self._max_steps)

    def record(self) -> Record:
        """The episode that just ended."""
        steps = len(self._rewards)
        places = switches(self._spec, committed=self._committed, steps=steps)
        boundary = smoothness(np.stack(self._commands), places, control_hz=self._spec.control_hz).boundary
        motion = boundary.max_acceleration, boundary.max_jerk
        episode = Episode(self._seed, max(self._rewards), self._rewards[-1], self._success, steps, *motion)
        return Record(episode, self._frames, {key: np.stack(values) for key, values in self._steps.items()})

    def close(self) -> None:
        """Frees the environment."""
        self._env.close()

    def _shoot(self) -> None:
        if self._seed in self._film_seeds:
            frame = self._env.render()
            if not isinstance(frame, np.ndarray):
                raise UserError(
                    f"A film needs render_mode='rgb_array' in the environment; render() gave {type(frame).__name__}."
                )
            self._frames.append(frame.copy())


def select(spec: PolicySpec, obs: Any) -> dict[str, np.ndarray]:
    """A copy of the policy's keys of one observation of the environment."""
    if not isinstance(obs, Mapping):
        raise ObservationError(
            f"The environment must give a dictionary with the keys {sorted(spec.observations)}; it gave {type(obs).__name__}."
        )
    chosen = {}
    for key, array in spec.observations.items():
        if key not in obs:
            raise ObservationError(f"The policy sees '{key}', but the environment gives only {sorted(obs)}.")
        chosen[key] = np.array(obs[key])
        if chosen[key].shape != array.shape:
            raise ObservationError(
                f"The policy sees '{key}' with shape {array.shape}; the environment gives shape {chosen[key].shape}."
            )
        if array.is_image:
            check_image(key, chosen[key])
    return chosen


def check_actions(spec: PolicySpec, env: gymnasium.Env[Any, Any]) -> None:
    """Refuse an environment that takes actions of another shape than `spec` commands."""
    if env.action_space.shape != spec.action.shape:
        raise UserError(f"The policy commands shape {spec.action.shape}; the environment takes shape {env.action_space.shape}.")
