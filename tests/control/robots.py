"""A made-up robot and policies for the tests of the control loop; importable by the processes that they start."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from drifting_policy.control.controller import Controller
from drifting_policy.control.status import Status
from drifting_policy.types import ArraySpec, PolicySpec

HZ = 100.0
SPEC = PolicySpec({"position": ArraySpec((2,))}, ArraySpec((2,)), obs_horizon=2, pred_horizon=12, exec_horizon=4, control_hz=HZ)


class Walker:
    """Plans to walk on from the newest position, by a step per control step, plus its noise.

    `misbehave` is called with the number of the call and the chunk, and may change it, raise or wait.
    """

    spec = SPEC

    def __init__(
        self,
        misbehave: Callable[[int, np.ndarray], Any] = lambda call, chunk: chunk,
        *,
        step: float = 0.001,
        scale: float = 0.0,
        max_prefix: int = 0,
    ) -> None:
        self.calls: list[dict[str, Any]] = []
        self.max_prefix = max_prefix
        self._misbehave, self._step, self._scale = misbehave, step, scale

    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Chunks "b t d"."""
        self.calls.append(
            {
                "obs": {key: value.copy() for key, value in obs.items()},
                "noise": None if noise is None else noise.copy(),
                "prefix": None if prefix is None else prefix.copy(),
            }
        )
        ahead = np.arange(SPEC.pred_horizon) - SPEC.first_executed
        chunk = obs["position"][:, -1:] + self._step * ahead[None, :, None]
        if noise is not None:
            chunk = chunk + self._scale * noise
        if prefix is not None:
            chunk[:, SPEC.first_executed : SPEC.first_executed + prefix.shape[1]] = prefix
        return np.asarray(self._misbehave(len(self.calls), chunk))


def walker() -> Walker:
    """For a process."""
    return Walker()


def dying_walker() -> Walker:
    """Ends its process in the fourth call, the first after the warm-up being the second."""
    import os

    return Walker(lambda call, chunk: os._exit(7) if call == 4 else chunk)


def broken_walker() -> Walker:
    """Cannot be made."""
    raise RuntimeError("no weights here")


class Gate:
    """Makes a walker wait in one call until the test opens it, and tells the test that it waits."""

    def __init__(self, call: int) -> None:
        self._call = call
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, call: int, chunk: np.ndarray) -> np.ndarray:
        if call == self._call:
            self.reached.set()
            assert self.opened.wait(60)
        return chunk


def drive(
    controller: Controller,
    steps: int,
    *,
    start: int = 0,
    position: np.ndarray | None = None,
    observe: Callable[[int], bool] = lambda step: True,
    clock: Callable[[int], float] = lambda step: step / HZ,
    settle: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, list[Status]]:
    """Runs a loop on virtual time, with a robot that is at once where it is told; the commands "step d" and statuses."""
    where = np.zeros(2, np.float32) if position is None else np.asarray(position, np.float32)
    actions, statuses = [], []
    for step in range(start, start + steps):
        if observe(step):
            controller.submit({"position": where}, clock(step))
        action, status = controller.action(clock(step))
        settle()
        actions.append(action.copy())
        statuses.append(status)
        if np.isfinite(action).all():
            where = action.astype(np.float32)
    return np.array(actions), statuses
