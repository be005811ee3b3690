"""The worker process: environments that are reset and stepped a whole chunk at a time, on the parent's order."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

from drifting_policy.rollout.episode import Record, Slot, check_actions
from drifting_policy.rollout.memory import WorkerMemory
from drifting_policy.types import ObservationError, PolicySpec, UserError, check_obs

SAFE = 1e77  # a sum of squares below it has no element that `check_obs` would refuse

# What goes through the pipe, besides the arrays in shared memory.
Order = tuple[int, int | None]  # slot and the seed to begin; without seed, execute the commands of the slot
Answer = tuple[int, Record | None]  # slot and the record of its episode; without record, it needs new commands


@dataclasses.dataclass(frozen=True)
class Attached:
    """The worker holds the memory, whose name is needed no longer."""


@dataclasses.dataclass(frozen=True)
class Crash:
    """The worker ends with an error that is not its user's."""

    cause: str


@dataclasses.dataclass(frozen=True)
class Job:
    """What all episodes of an evaluation have in common; `make_env` must be importable where the worker runs.

    `spec` has the exec_horizon that is executed, and the first `committed` commands of every later plan are those of the plan
    before.
    """

    make_env: Callable[[], gymnasium.Env[Any, Any]]
    spec: PolicySpec
    max_steps: int
    film_seeds: frozenset[int]
    keep: bool
    committed: int = 0

    def slot(self) -> Slot:
        """A fresh environment for one episode after the other; its owner closes it.

        Raises:
            UserError: the environment takes actions of another shape.
        """
        env = self.make_env()
        try:
            check_actions(self.spec, env)
        except UserError:
            env.close()
            raise
        options: dict[str, Any] = {"film_seeds": self.film_seeds, "keep": self.keep, "committed": self.committed}
        return Slot(env, self.spec, max_steps=self.max_steps, **options)


class Player:
    """One slot that is played by chunks; keeps the observation history that `ChunkExecutor.step` would keep."""

    def __init__(self, slot: Slot, spec: PolicySpec, memory: WorkerMemory, *, index: int) -> None:
        self._slot = slot
        self._spec = spec
        self._memory = memory
        self._index = index
        self._history: list[dict[str, np.ndarray]] = []
        longest = spec.obs_horizon - 1 + spec.exec_horizon
        self._rows = {key: np.zeros((longest, *array.shape), array.dtype) for key, array in spec.observations.items()}

    def serve(self, seed: int | None) -> Record | None:
        """Begin the episode of `seed`, or without one execute the commands in memory.

        Returns the record if the episode is over; if not, the newest window lies in memory.
        """
        if seed is not None:
            self._memory.touch(self._index)
            self._slot.begin(seed)
            self._history = [self._slot.obs] * self._spec.obs_horizon
            self._observe()
            return None
        del self._history[: 1 - self._spec.obs_horizon or None]
        for command in self._memory.commands[self._index].copy():
            self._memory.touch(self._index)
            if self._slot.advance(command):
                if len(self._history) >= self._spec.obs_horizon:
                    self._observe()  # for its checks; the observation that ends an episode is seen by nobody
                return self._slot.record()
            self._history.append(self._slot.obs)
        self._observe()
        return None

    def _observe(self) -> None:
        """Check every window of the history as one step after the other would have, and leave the newest one.

        Between the steps of a simulator all code of NumPy has left the caches of the processor, and a call of it takes ten
        times as long as in a loop of its own; hence few of them.
        """
        horizon, count = self._spec.obs_horizon, len(self._history)
        sound = True
        with np.errstate(over="ignore"):  # a value too large becomes infinity, which `check_obs` reports
            for key, rows in self._rows.items():
                try:
                    for place, obs in enumerate(self._history):
                        np.copyto(rows[place, ...], obs[key])
                except TypeError as error:
                    raise ObservationError(f"Observation '{key}' must fit into dtype {rows.dtype}: {error}.") from error
                if rows.dtype.kind == "f":
                    flat = rows[:count].reshape(-1)
                    sound &= bool(np.dot(flat, flat) < SAFE)
                self._memory.windows[key][self._index] = rows[count - horizon : count]
        if not sound:
            places = np.arange(count - horizon + 1)[:, None] + np.arange(horizon)
            check_obs(self._spec, {key: rows[places] for key, rows in self._rows.items()})


def work(connection: Connection, job: Job, *, slots: int, memory_name: str) -> None:
    """Serve orders until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    memory = WorkerMemory(job.spec, slots=slots, name=memory_name)
    with contextlib.ExitStack() as stack:
        stack.callback(memory.close)
        stack.enter_context(contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError))
        connection.send(Attached())
        try:
            players = []
            for index in range(slots):
                slot = job.slot()
                stack.callback(slot.close)
                players.append(Player(slot, job.spec, memory, index=index))
            _serve(connection, players, memory)
        except UserError as error:
            connection.send(error)
        except Exception as error:
            connection.send(Crash(f"{type(error).__name__}: {error}"))  # fails, rightly, where the pipe is the error
            raise


def _serve(connection: Connection, players: Sequence[Player], memory: WorkerMemory) -> None:
    """Execute orders, and answer when half of the slots are done: the parent plans for them while the others are stepped.

    To answer each one by itself would wake the parent more often, for fewer plans at once.
    """
    half = -(-len(players) // 2)
    while True:
        orders: list[Order] = connection.recv()
        for start in range(0, len(orders), half):
            answers: list[Answer] = []
            for index, seed in orders[start : start + half]:
                answers.append((index, players[index].serve(seed)))
                memory.rest()
            connection.send(answers)


def _end_with_parent() -> None:
    """A step that never returns must not outlive the parent either."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
