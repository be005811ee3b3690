"""Fallback: what the robot is told while no planned command is due."""

from typing import final

import numpy as np

from drifting_policy.control.limiter import Limiter
from drifting_policy.types import ConfigError

FALLBACKS = ("hold", "decelerate", "stop")


@final
class Fallback:
    """Brings the robot to rest through its limiter, which keeps the limits, and keeps it there.

    `hold` stays at the last command, or comes to rest as quickly as the acceleration limits allow. `decelerate` goes on in the
    last direction, ever more slowly, and rests after `rest_seconds`. `stop` is `hold` that ends only by `Controller.reset`.

    Args:
        kind: one of the three.
        limiter: what it moves.
        rest_steps: control steps until rest, of `decelerate`.

    Raises:
        ConfigError: an unknown kind, or no step.
    """

    def __init__(self, kind: str, limiter: Limiter, *, rest_steps: int) -> None:
        if kind not in FALLBACKS:
            raise ConfigError(f"Unknown fallback '{kind}'; choose one of {list(FALLBACKS)}.")
        if rest_steps < 1:
            raise ConfigError(f"rest_seconds must span at least one control step; it spans {rest_steps}.")
        self.latches = kind == "stop"
        self._gentle = kind == "decelerate"
        self._limiter = limiter
        self._total = rest_steps
        self._left = 0
        self._speed, self._target, self._step = (np.zeros_like(limiter.position) for _ in range(3))

    def begin(self) -> None:
        """The robot moves as the limiter last told it; from here on it is to come to rest."""
        self._left = self._total
        np.copyto(self._speed, self._limiter.displacement)
        np.copyto(self._target, self._limiter.position)

    def advance(self) -> None:
        """One control step of the limiter."""
        if not self._gentle or self._left == 0:
            self._limiter.brake()
            return
        self._left -= 1
        np.multiply(self._speed, self._left / self._total, out=self._step)
        np.add(self._target, self._step, out=self._target)
        self._limiter.step(self._target)
