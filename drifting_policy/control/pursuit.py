"""Pursuit: which acceleration meets a target, at rest relative to it. All in units per control step."""

from typing import final

import numpy as np

from drifting_policy.control.braking import Brake
from drifting_policy.control.ways import Ways

MARGIN = 1e-6  # of a length; no rounding gets that far
TINY = 1e-300  # instead of a difference of zero


@final
class Pursuit:
    """The acceleration after which the quickest way to rest ends at the target, or the nearest allowed.

    The ways that begin with the least and with the most acceleration end at two places; their mixture that ends at the target
    begins with the answer. Nearly always the target lies before both ends or beyond, which a bound tells; only if it may lie
    between them, the ways are written out.

    Args:
        brake: of the dimension, relative to the target.
        steps: n, of a way that is written out.
    """

    def __init__(self, brake: Brake, *, steps: int) -> None:
        self._brake, self._n = brake, steps
        self._ways = Ways([brake, brake], steps=steps)
        self._weights = np.arange(steps, 0.0, -1.0) + np.zeros((2, 1))

    def acceleration(self, gap: float, v: float, *, least: float, most: float) -> float:
        """What to take next, from `least` to `most`, at the velocity `v` and with the target ahead by `gap`."""
        brake, slack = self._brake, MARGIN * (abs(gap) + self._brake.acceleration)
        if gap > self._guess(v, 0.5 * (least + most)):
            share, outside = 1.0, gap > brake.reach(v + most, most) + slack
        else:
            share, outside = 0.0, -gap > brake.reach(-v - least, -least) + slack
        if not outside:
            share = self._share(gap, v + least, v + most, least=least, most=most)
        return (most - least) * share + least

    def _guess(self, v: float, a: float) -> float:
        """About where it would come to rest: first `a` is taken back, then the velocity that is left."""
        A, q = self._brake.acceleration, self._brake.jerk
        steps = abs(a) / q
        left = v + 0.5 * a * steps
        return (v + a * steps / 3.0) * steps + 0.5 * left * (abs(left) / A + A / q)

    def _share(self, gap: float, slow: float, fast: float, *, least: float, most: float) -> float:
        """The share of the most acceleration in the answer; `slow` and `fast` are the velocities of the first steps.

        Where a way ends: the velocity of its first step counts n + 1 times, its j-th acceleration n + 1 - j times.
        """
        ways = self._ways.write((self._brake.way(slow, least), self._brake.way(fast, most)))
        np.multiply(ways, self._weights, out=ways)
        near, far = np.add.reduce(ways, axis=1).tolist()
        near, far = near + slow * (self._n + 1), far + fast * (self._n + 1)
        return min(max((gap - near) / max(far - near, TINY), 0.0), 1.0)
