"""Executes action chunks step by step: observation history, receding horizon and one noise stream per episode."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np

from drifting_policy.seams import Execution
from drifting_policy.types import ObservationError, Policy, PolicySpec, check_image, check_obs


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

    `seam` says how a plan takes over from the one before, see `Execution`: the diagram shows "snap". With a prefix the policy
    is told the commands until then, so that its plan continues them; the first plan of an episode has no prefix.

    The policy always sees blocks of exactly `inference_batch` rows, padded by repeating the last row: the last bits of a
    matrix product depend on the batch size, and contacts amplify them. Hence the commands of an environment depend neither on
    `num_envs` nor on its neighbours, as long as each row of the policy's output depends on that row of its input only.

    One robot is a batch of one: `executor.step({key: value[None] for key, value in obs.items()})[0]`.

    Args:
        policy: turns observations "b to ..." into chunks "b t d".
        num_envs: number of environments, b of `step`.
        inference_batch: rows of each call of the policy; larger is faster with many environments on a GPU.
        latency_steps: control steps between an observation and the first command that follows from it.
        seam: "snap", "fade", "prefix" or "prefix_fade".
        fade_steps: steps of a fade.
        commit_steps: commands of the plan before that a prefix keeps beyond the latency.
        exec_horizon: steps between two plans; None for that of the policy.
        held_noise: all plans of an episode have the noise of its first one.
        clock: seconds, monotonic.

    Attributes:
        spec: the contract of the policy, with the `exec_horizon` that is executed.
        plan_seconds: duration of every call of the policy so far, the first (warm-up) call included.

    Raises:
        ConfigError: a latency below zero, or one that the chunk is too short for; a seam that does not exist, or one that the
            policy was not trained for.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int = 1,
        *,
        inference_batch: int = 1,
        latency_steps: int = 0,
        seam: str = "snap",
        fade_steps: int = 4,
        commit_steps: int = 0,
        exec_horizon: int | None = None,
        held_noise: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if num_envs < 1 or inference_batch < 1:
            raise ValueError(f"num_envs and inference_batch must be at least 1; got {num_envs} and {inference_batch}.")
        self._execution = Execution(seam, fade_steps, commit_steps, exec_horizon, held_noise)
        self._execution.check(policy, latency_steps)
        self.spec = spec = dataclasses.replace(policy.spec, exec_horizon=self._execution.period(policy.spec))
        self.plan_seconds: list[float] = []
        self._policy = policy
        self._inference_batch = inference_batch
        self._latency = latency_steps
        self._clock = clock
        self._windows = {
            key: np.zeros((num_envs, spec.obs_horizon, *array.shape), array.dtype) for key, array in spec.observations.items()
        }
        # From the newest plan on: the commands up to the next plan, then those that bridge the time until that has taken over.
        steps = spec.pred_horizon - spec.first_executed
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
        self._executed[started] = self.spec.exec_horizon
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
        check_obs(self.spec, windows)
        planning = np.flatnonzero(taking_part & (self._executed == self.spec.exec_horizon)).tolist()
        commands = self._plan({key: window[planning] for key, window in windows.items()}, planning)

        self._windows = windows
        self._started |= taking_part
        self._commands[planning] = commands
        self._executed[planning] = 0
        self._plans[planning] += 1
        actions = np.full((self.num_envs, *self.spec.action.shape), np.nan, self._commands.dtype)
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
        if check_obs(self.spec, windows) != len(set(chosen)) or len(set(chosen)) != len(chosen):
            raise ValueError(f"plan needs one row of observations for each of the environments {list(envs)}, and each once.")
        if any(self._executed[env] != self.spec.exec_horizon for env in chosen):
            raise ValueError(f"plan needs environments that are planned, not stepped; one of {list(envs)} has commands left.")
        commands = self._plan(windows, chosen)
        self._commands[chosen] = commands
        self._plans[chosen] += 1
        return commands[:, : self.spec.exec_horizon]

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
        """All commands "n t d" from now on of the environments `envs`, which make a new plan from their `windows`."""
        commands = np.empty((len(envs), *self._commands.shape[1:]), self._commands.dtype)
        for block in self._blocks(envs):
            commands[block] = self._infer(windows, envs, block)[:, self.spec.first_executed :]
        late = [place for place, env in enumerate(envs) if self._plans[env] > 0]
        before = self._commands[[envs[place] for place in late], self.spec.exec_horizon :]
        commands[late] = self._execution.join(before, commands[late], latency_steps=self._latency)
        return commands

    def _blocks(self, envs: Sequence[int]) -> Iterator[list[int]]:
        """The places of `envs` in blocks for one call of the policy each: all have a seed or none, and a prefix or none."""
        kinds = [(self._seeds[env] is None, self._committed(env)) for env in envs]
        for kind in sorted(set(kinds)):
            places = [place for place, other in enumerate(kinds) if other == kind]
            for start in range(0, len(places), self._inference_batch):
                yield places[start : start + self._inference_batch]

    def _committed(self, env: int) -> int:
        """How many commands the next plan of an environment is told to continue."""
        if not self._execution.continues or self._plans[env] == 0:
            return 0
        return self._execution.committed(self._latency)

    def _infer(self, windows: Mapping[str, np.ndarray], envs: Sequence[int], block: list[int]) -> np.ndarray:
        """Chunks for the places `block` of `windows` and `envs`, which are of one kind."""
        rows = [*block, *block[-1:] * (self._inference_batch - len(block))]
        noises = [
            plan_noise(seed, 0 if self._execution.held_noise else int(self._plans[envs[place]]), self.spec.sample_shape)
            for place in rows
            if (seed := self._seeds[envs[place]]) is not None
        ]
        obs = {key: window[rows] for key, window in windows.items()}
        options: dict[str, Any] = {"noise": np.stack(noises) if noises else None}
        if committed := self._committed(envs[block[0]]):
            start = self.spec.exec_horizon
            options["prefix"] = self._commands[[envs[place] for place in rows], start : start + committed]
        begin = self._clock()
        chunks = np.asarray(self._policy.act(obs, **options))
        self.plan_seconds.append(self._clock() - begin)
        _check_chunks(self.spec, chunks, batch=self._inference_batch)
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
