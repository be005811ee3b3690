"""Rolls a policy out over a list of episode seeds. An episode depends on its seed only, not on how the work was spread."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from drifting_policy.chunking import ChunkExecutor
from drifting_policy.types import ObservationError, Policy, PolicySpec, UserError


@dataclasses.dataclass(frozen=True)
class Episode:
    """Outcome of one episode.

    `max_score` is the largest and `final_score` the last reward; `success` says whether any step reported info["success"].
    """

    seed: int
    max_score: float
    final_score: float
    success: bool
    steps: int


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Everything that an evaluation saw.

    `episodes` are sorted by seed. `plan_seconds` holds the duration of every call of the policy, warm-up included. `frames`
    maps the seeds that were filmed to their images: one after the reset and one after each step. `trajectories` maps seeds to
    arrays over the steps: the observation keys as they were before each action, and "action".
    """

    episodes: tuple[Episode, ...]
    plan_seconds: tuple[float, ...]
    frames: Mapping[int, list[np.ndarray]]
    trajectories: Mapping[int, Mapping[str, np.ndarray]]


def evaluate(
    policy: Policy,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    seeds: Sequence[int],
    *,
    num_envs: int = 1,
    max_steps: int,
    inference_batch: int = 1,
    noise_seed: int = 0,
    latency_steps: int = 0,
    video_seeds: Collection[int] = (),
    keep_trajectories: bool = False,
    progress: bool = False,
) -> EvalResult:
    """The outcome of one episode per seed; the seed sets the initial state and the noise of every plan.

    The seeds are a queue of work for `num_envs` environments that are stepped in turn. The result, apart from the times, does
    not depend on `num_envs`, on the order of the seeds, or on what is recorded.

    Args:
        policy: sees exactly the keys of its specification.
        make_env: makes an environment with dictionary observations, determined by `reset(seed=...)`.
        seeds: distinct episode seeds in [0, 2^64).
        num_envs: environments side by side.
        max_steps: steps after which an episode is over, if it did not end by itself.
        inference_batch: rows of each call of the policy, see `ChunkExecutor`.
        noise_seed: another number below 2^32 gives the same initial states with other noise.
        latency_steps: control steps that pass between an observation and the first command that follows from it.
        video_seeds: seeds whose episodes are filmed with `env.render()`.
        keep_trajectories: record what the policy saw and did.
        progress: show a progress bar on stderr.

    Raises:
        UserError: seeds that repeat, seeds or a noise seed out of range, a film of a seed that is not evaluated, counts below
            one, or an environment that takes actions of another shape.
        ConfigError: a latency that the policy's chunks are too short for.
        ObservationError: the environment's observations do not fit the policy.
    """
    queue = [int(seed) for seed in seeds]
    _check_request(queue, video_seeds, num_envs=num_envs, max_steps=max_steps, noise_seed=noise_seed)
    with contextlib.ExitStack() as stack:
        slots = []
        for _ in range(min(num_envs, len(queue))):
            env = make_env()
            stack.callback(env.close)
            check_actions(policy.spec, env)
            slots.append(
                _Slot(env, policy.spec, max_steps=max_steps, film_seeds=frozenset(video_seeds), keep=keep_trajectories)
            )
        executor = ChunkExecutor(policy, len(slots), inference_batch=inference_batch, latency_steps=latency_steps)
        bar = stack.enter_context(tqdm(total=len(queue), desc="episodes", disable=not progress))
        records = sorted(_play(slots, executor, queue, bar, noise_seed), key=lambda record: record.episode.seed)
    return EvalResult(
        episodes=tuple(record.episode for record in records),
        plan_seconds=tuple(executor.plan_seconds),
        frames={record.episode.seed: record.frames for record in records if record.frames},
        trajectories={record.episode.seed: record.trajectory for record in records if record.trajectory},
    )


def _play(
    slots: Sequence["_Slot"], executor: ChunkExecutor, seeds: Sequence[int], bar: "tqdm[Any]", noise_seed: int
) -> list["_Record"]:
    """The records of all seeds in the order in which their episodes ended."""
    waiting = list(reversed(seeds))
    records = []

    def begin(index: int) -> None:
        seed = waiting.pop()
        slots[index].begin(seed)
        executor.reset(np.arange(len(slots)) == index, seeds=[seed ^ (noise_seed << 32)])

    for index in range(len(slots)):
        begin(index)
    active = np.ones(len(slots), dtype=bool)
    while active.any():
        actions = executor.step({key: np.stack([slot.obs[key] for slot in slots]) for key in slots[0].obs}, active)
        for index in np.flatnonzero(active).tolist():
            if not slots[index].advance(actions[index]):
                continue
            records.append(slots[index].record())
            bar.update()
            if waiting:
                begin(index)
            else:
                active[index] = False
    return records


@dataclasses.dataclass(frozen=True)
class _Record:
    episode: Episode
    frames: list[np.ndarray]
    trajectory: dict[str, np.ndarray]


class _Slot:
    """One environment and the episode that runs in it."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], spec: PolicySpec, *, max_steps: int, film_seeds: Collection[int], keep: bool
    ) -> None:
        self._env = env
        self._spec = spec
        self._max_steps = max_steps
        self._film_seeds = film_seeds
        self._keep = keep

    def begin(self, seed: int) -> None:
        """Starts the episode of `seed`; `obs` is its newest observation from now on."""
        self._seed = seed
        self._frames: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._success = False
        self._steps: dict[str, list[np.ndarray]] = {}
        self.obs = _select(self._spec, self._env.reset(seed=seed)[0])
        self._shoot()

    def advance(self, action: np.ndarray) -> bool:
        """Whether the episode is over after `action`."""
        if self._keep:
            for key, value in (self.obs | {"action": action.copy()}).items():
                self._steps.setdefault(key, []).append(value)
        obs, reward, terminated, truncated, info = self._env.step(action)
        self.obs = _select(self._spec, obs)
        self._rewards.append(float(reward))
        self._success |= bool(info.get("success", False))
        self._shoot()
        return bool(terminated or truncated or len(self._rewards) == self._max_steps)

    def record(self) -> _Record:
        """The episode that just ended."""
        episode = Episode(self._seed, max(self._rewards), self._rewards[-1], self._success, len(self._rewards))
        return _Record(episode, self._frames, {key: np.stack(values) for key, values in self._steps.items()})

    def _shoot(self) -> None:
        if self._seed in self._film_seeds:
            frame = self._env.render()
            if not isinstance(frame, np.ndarray):
                raise UserError(
                    f"A film needs render_mode='rgb_array' in the environment; render() gave {type(frame).__name__}."
                )
            self._frames.append(frame.copy())


def _select(spec: PolicySpec, obs: Any) -> dict[str, np.ndarray]:
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
    return chosen


def check_actions(spec: PolicySpec, env: gymnasium.Env[Any, Any]) -> None:
    """Refuse an environment that takes actions of another shape than `spec` commands."""
    if env.action_space.shape != spec.action.shape:
        raise UserError(f"The policy commands shape {spec.action.shape}; the environment takes shape {env.action_space.shape}.")


def _check_request(
    seeds: Sequence[int], video_seeds: Collection[int], *, num_envs: int, max_steps: int, noise_seed: int
) -> None:
    if not seeds:
        raise UserError("An evaluation needs at least one seed; got none.")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"Every seed may be evaluated once; got {len(seeds) - len(set(seeds))} repetitions.")
    if min(seeds) < 0 or max(seeds) >= 2**64:
        raise UserError(f"Seeds must lie in [0, 2^64); got {min(seeds)} .. {max(seeds)}.")
    if not set(video_seeds) <= set(seeds):
        raise UserError(f"video_seeds must be among the seeds; {sorted(set(video_seeds) - set(seeds))} are not.")
    if num_envs < 1 or max_steps < 1:
        raise UserError(f"num_envs and max_steps must be at least 1; got {num_envs} and {max_steps}.")
    if not 0 <= noise_seed < 2**32:
        raise UserError(f"noise_seed must lie in [0, 2^32); got {noise_seed}.")
