"""A toy environment and a policy that worker processes can import; the environment can be told to get into trouble."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from drifting_policy.types import ArraySpec, ConfigError, PolicySpec


class Walk(gymnasium.Env[Any, np.ndarray]):
    """A point moves by the action; the reward is -|x|, and success is a visit of x < -1. Ends after 3 + 2 (seed % 4) steps.

    Args:
        trouble: what happens in the third step of the episode `seed`, or when the environment is made.
        seed: of the episode with trouble; None for all.
        marks: a folder, in which each process leaves its number, and each trouble a file.
        times: how often there is trouble.
    """

    observation_space = spaces.Dict({"x": spaces.Box(-99, 99, (1,), np.float32)})
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, *, trouble: str = "", seed: int | None = 5, marks: str = "", times: int = 1) -> None:
        self.trouble, self.troubled, self.marks, self.times = trouble, seed, Path(marks), times
        if marks:
            (self.marks / f"process {os.getpid()}").touch()
        if trouble == "no environment":
            raise RuntimeError("no display")
        if trouble == "PyTorch" and "torch" in sys.modules:
            raise ConfigError("A worker needs no PyTorch.")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=1).astype(np.float32)
        self.seed, self.step_number, self.last = seed, 0, 3 + 2 * ((seed or 0) % 4)
        return {"x": self.x}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.x += action  # in place: who keeps observations must copy them
        self.step_number += 1
        if self.trouble and self.step_number == 3 and self.troubled in (self.seed, None):
            self.make_trouble()
        info = {"success": bool(self.x[0] < -1)}
        return {"x": self.x}, -abs(float(self.x[0])), self.step_number == self.last, False, info

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.last - self.step_number, np.uint8)

    def make_trouble(self) -> None:
        if self.trouble == "not a number":
            self.x[0] = np.nan
        if self.trouble == "mistake":
            raise ConfigError("The table has no legs.")
        marks = list(self.marks.glob("trouble *"))
        if self.marks == Path() or len(marks) >= self.times:
            return
        (self.marks / f"trouble {len(marks)} {self.seed}").touch()
        if self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "exit":
            os._exit(3)
        if self.trouble == "hang":
            time.sleep(1000)
        if self.trouble == "raise":
            raise RuntimeError("the gears broke")


class Noisy:
    """Commands its noise minus a tenth of the newest observation; calls `on_plan` with the number of the call before each."""

    max_prefix = 0

    def __init__(self, key: str = "x", size: int = 1, *, scale: float = 1.0, centre: float = 0.0, on_plan: Any = None) -> None:
        self.spec = PolicySpec({key: ArraySpec((size,))}, ArraySpec((size,)), 2, 6, 2, 10.0)
        self.key, self.scale, self.centre, self.on_plan, self.calls = key, scale, centre, on_plan, 0

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        self.calls += 1
        if self.on_plan is not None:
            self.on_plan(self.calls)
        assert noise is not None
        return np.asarray(self.centre + self.scale * noise - 0.1 * (obs[self.key][:, -1:] - self.centre), dtype=np.float32)
