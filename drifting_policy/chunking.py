"""Executes action chunks step by step: observation history, receding horizon and one noise stream per episode."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np

from drifting_policy.types import ConfigError, ObservationError, Policy, PolicySpec, check_image, check_obs


def plan_noise(seed: int, plan: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of `shape` (float32) for plan number `plan` of the episode with `seed`.

    The noise is a pure function of its arguments: it depends neither on other episodes nor on the order of plans.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, plan], dtype=np.uint64)))
    return generator.standard_normal(shape, dtype=np.float32)


@final
class ChunkExecutor:
    """Turns single observations into single commands for `num_envs` simulators or robots that run side by side.

    Each environment has its own observation history (its first observation is repeated to fill it), its own queue of commands
    and its own noise. It plans when its queue is empty and then executes the steps first_executed .. first_executed +
    exec_horizon of the chunk.

    With `latency_steps` the commands of a plan become available so many steps after the observation that it was made from. The
    steps that have passed by then are dropped, and until then the later steps of the plan before are executed. An episode
    begins when its first plan is there: a robot at rest can wait for it. With ta = 3 and two steps of latency, x is executed:

        plan of step 0    x x x x x . .        ta = 3, two steps of latency: x executed
        plan of step 3          . . x x x . .
        plan of step 6                . . x x x . .

    The policy always sees blocks of exactly `inference_batch` rows, padded by repeating the last row: the last bits of a
    matrix product depend on the batch size, and contacts amplify them. Hence the commands of an environment depend neither on
    `num_envs` nor on its neighbours, as long as each row of the policy's output depends on that row of its input only.

    One robot is a batch of one: `executor.step({key: value[None] for key, value in obs.items()})[0]`.

    Args:
        policy: turns observations "b to ..." into chunks "b t d".
        num_envs: number of environments, b of `step`.
        inference_batch: rows of each call of the policy; larger is faster with many environments on a GPU.
        latency_steps: control steps between an observation and the first command that follows from it.
        clock: seconds, monotonic.

    Attributes:
        plan_seconds: duration of every call of the policy so far, the first (warm-up) call included.

    Raises:
        ConfigError: a latency below zero, or one that the chunk is too short for.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int = 1,
        *,
        inference_batch: int = 1,
        latency_steps: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if num_envs < 1 or inference_batch < 1:
            raise ValueError(f"num_envs and inference_batch must be at least 1; got {num_envs} and {inference_batch}.")
        spec = policy.spec
        longest = spec.pred_horizon - spec.first_executed - spec.exec_horizon
        if not 0 <= latency_steps <= longest:
            raise ConfigError(
                f"latency_steps must lie between 0 and {longest}, for exec_horizon + latency_steps must fit into the "
                f"{spec.pred_horizon - spec.first_executed} planned steps from now on; got {latency_steps}."
            )
        self.plan_seconds: list[float] = []
        self._policy = policy
        self._spec = spec
        self._inference_batch = inference_batch
        self._latency = latency_steps
        self._clock = clock
        self._windows = {
            key: np.zeros((num_envs, spec.obs_horizon, *array.shape), array.dtype) for key, array in spec.observations.items()
        }
        # From the newest plan on: the commands up to the next plan, then those that bridge the time until that is available.
        steps = spec.exec_horizon + latency_steps
        self._commands = np.zeros((num_envs, steps, *spec.action.shape), spec.action.dtype)
        self._executed = np.full(num_envs, spec.exec_horizon)
        self._started = np.zeros(num_envs, dtype=bool)
        self._plans = np.zeros(num_envs, dtype=np.int64)
        self._seeds: list[int | None] = [None] * num_envs

    @property
    def num_envs(self) -> int:
        """Number of environments."""
        return len(self._started)

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> None:
        """Forgets history and queue of the environments in `mask` "b" (default: all) and starts new episodes there.

        Args:
            mask: True for the environments whose episode begins.
            seeds: one integer in [0, 2^64) per environment in `mask`, in their order; picks the noise of every plan of the
                episode. Without seeds the policy is called without noise and draws its own default sample.

        Raises:
            ValueError: a mask of another length, or seeds that do not fit the mask.
        """
        started = np.flatnonzero(self._as_mask(mask))
        if seeds is not None:
            if len(seeds) != len(started):
                raise ValueError(f"reset needs one seed for each of the {len(started)} environments; got {len(seeds)}.")
            if not all(0 <= seed < 2**64 for seed in seeds):
                raise ValueError(f"Episode seeds must lie in [0, 2^64); got {list(seeds)}.")
        self._started[started] = False
        self._executed[started] = self._spec.exec_horizon
        self._plans[started] = 0
        for place, env in enumerate(started):
            self._seeds[env] = None if seeds is None else int(seeds[place])

    def step(self, obs: Mapping[str, np.ndarray], active: np.ndarray | None = None) -> np.ndarray:
        """Commands "b d" in raw units for the newest observations "b ..."; a failed step changes nothing.

        Args:
            obs: exactly the policy's keys, one row per environment.
            active: mask "b" of the environments that take part (default: all). The rows of the others are ignored; their
                commands are NaN.

        Raises:
            ObservationError: a missing or unknown key, a wrong shape or dtype, NaN or infinity.
            ValueError: a mask of another length, or a policy that does not return finite chunks.
        """
        taking_part = self._as_mask(active)
        windows = self._next_windows(obs, taking_part)
        check_obs(self._spec, windows)
        planning = np.flatnonzero(taking_part & (self._executed == self._spec.exec_horizon)).tolist()
        commands = self._plan({key: window[planning] for key, window in windows.items()}, planning)

        self._windows = windows
        self._started |= taking_part
        self._commands[planning] = commands
        self._executed[planning] = 0
        self._plans[planning] += 1
        actions = np.full((self.num_envs, *self._spec.action.shape), np.nan, self._commands.dtype)
        actions[taking_part] = self._commands[taking_part, self._executed[taking_part]]
        self._executed[taking_part] += 1
        return actions

    def plan(self, windows: Mapping[str, np.ndarray], envs: Sequence[int]) -> np.ndarray:
        """The next exec_horizon commands "n ta d" of the n environments `envs`, for who keeps the observation history himself.

        They are those that `step` would give one by one. An episode is either planned or stepped: `step` knows nothing of
        observations that only `plan` saw.

        Args:
            windows: the newest obs_horizon observations "n to ..." by key, the first one of the episode repeated to fill them.
            envs: distinct indices below `num_envs`, one per row.

        Raises:
            ObservationError: a missing or unknown key, a wrong shape or dtype, NaN or infinity.
            ValueError: not one row for each environment, one that has commands left, or a policy that does not return finite
                chunks.
        """
        chosen = [range(self.num_envs)[env] for env in envs]
        if check_obs(self._spec, windows) != len(set(chosen)) or len(set(chosen)) != len(chosen):
            raise ValueError(f"plan needs one row of observations for each of the environments {list(envs)}, and each once.")
        if any(self._executed[env] != self._spec.exec_horizon for env in chosen):
            raise ValueError(f"plan needs environments that are planned, not stepped; one of {list(envs)} has commands left.")
        commands = self._plan(windows, chosen)
        self._commands[chosen] = commands
        self._plans[chosen] += 1
        return commands[:, : self._spec.exec_horizon]

    def _as_mask(self, mask: np.ndarray | None) -> np.ndarray:
        chosen = np.ones(self.num_envs, dtype=bool) if mask is None else np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != bool:
            raise ValueError(f"A mask must be {self.num_envs} booleans; got shape {chosen.shape}, dtype {chosen.dtype}.")
        return chosen

    def _next_windows(self, obs: Mapping[str, np.ndarray], taking_part: np.ndarray) -> dict[str, np.ndarray]:
        if set(obs) != set(self._windows):
            missing, unknown = sorted(set(self._windows) - set(obs)), sorted(set(obs) - set(self._windows))
            raise ObservationError(
                f"The observation must have exactly the keys {sorted(self._windows)}; missing: {missing}, unknown: {unknown}."
            )
        windows = {key: window.copy() for key, window in self._windows.items()}
        going_on, beginning = taking_part & self._started, taking_part & ~self._started
        for key, window in windows.items():
            newest = _as_rows(obs[key], key=key, like=window)
            window[going_on, :-1] = window[going_on, 1:]
            window[going_on, -1] = newest[going_on]
            window[beginning] = newest[beginning, None]
        return windows

    def _plan(self, windows: Mapping[str, np.ndarray], envs: Sequence[int]) -> np.ndarray:
        """Commands "n ta+latency d" from now on for the environments `envs`, which make a new plan from their `windows`."""
        commands = np.empty((len(envs), *self._commands.shape[1:]), self._commands.dtype)
        first = self._spec.first_executed
        for noisy in (True, False):
            places = [place for place, env in enumerate(envs) if (self._seeds[env] is not None) == noisy]
            for start in range(0, len(places), self._inference_batch):
                block = places[start : start + self._inference_batch]
                chunks = self._infer(windows, envs, block)
                commands[block] = chunks[:, first : first + commands.shape[1]]
        if self._latency:  # until the new plan is available, the one before goes on
            late = [place for place, env in enumerate(envs) if self._plans[env] > 0]
            commands[late, : self._latency] = self._commands[[envs[place] for place in late], self._spec.exec_horizon :]
        return commands

    def _infer(self, windows: Mapping[str, np.ndarray], envs: Sequence[int], block: list[int]) -> np.ndarray:
        """Chunks for the places `block` of `windows` and `envs`, which all have a seed or none."""
        rows = [*block, *block[-1:] * (self._inference_batch - len(block))]
        noises = [
            plan_noise(seed, int(self._plans[envs[place]]), self._spec.sample_shape)
            for place in rows
            if (seed := self._seeds[envs[place]]) is not None
        ]
        begin = self._clock()
        chunks = np.asarray(
            self._policy.act({key: window[rows] for key, window in windows.items()}, noise=np.stack(noises) if noises else None)
        )
        self.plan_seconds.append(self._clock() - begin)
        _check_chunks(self._spec, chunks, batch=self._inference_batch)
        return chunks[: len(block)]


def _as_rows(value: np.ndarray, *, key: str, like: np.ndarray) -> np.ndarray:
    rows = np.asarray(value)
    expected = (like.shape[0], *like.shape[2:])
    if rows.shape != expected:
        raise ObservationError(f"Observation '{key}' must have shape {expected}, one row per environment; got {rows.shape}.")
    if like.dtype == np.uint8:
        check_image(key, rows)
    if not np.can_cast(rows.dtype, like.dtype, casting="same_kind"):
        raise ObservationError(f"Observation '{key}' must fit into dtype {like.dtype}; got {rows.dtype}.")
    with np.errstate(over="ignore"):  # a value too large for the dtype becomes infinity, which `check_obs` reports
        return rows.astype(like.dtype)


def _check_chunks(spec: PolicySpec, chunks: np.ndarray, *, batch: int) -> None:
    expected = (batch, *spec.sample_shape)
    if chunks.shape != expected:
        raise ValueError(f"The policy must return action chunks of shape {expected}; it returned {chunks.shape}.")
    if not np.isfinite(chunks).all():
        raise ValueError("The policy returned an action chunk with NaN or infinity; check its weights and statistics.")
