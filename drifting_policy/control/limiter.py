"""Limiter: follows commands as closely as limits allow, and never leaves them."""

from typing import final

import numpy as np

from drifting_policy.control.braking import Brake, largest_start
from drifting_policy.control.limits import Limits

ROUNDING = 1e-9  # a command may exceed what is allowed by this share of the allowed change, and still counts as kept
TINY = 1e-300  # instead of a difference of zero


@final
class Limiter:
    """One command in, one command out, every control step; position, velocity, acceleration and jerk keep their limits.

    A command that keeps the limits, and after which the robot can still stop within them, passes unchanged. Otherwise the
    output accelerates towards the command as far as it may, brakes in time to meet it, and follows it again.

    Why no command whatever can break a limit: the limiter holds accelerations that would bring the robot to rest within all
    limits (`Brake`). A new command makes a second such sequence, which begins with the wanted acceleration; its velocities,
    accelerations and jerks keep their limits by construction, its positions may not. All limits are linear in the
    accelerations, so any mixture of both sequences keeps what both keep; the largest share of the new one that keeps the
    positions in bounds is found by a division, and the mixture is held from then on. By induction there always is one.

    The velocity is kept likewise: an acceleration is allowed if the velocity that is reached while it is taken back by the
    jerk limit is, and zero always is.

    Args:
        limits: what is to be kept.
        control_hz: control steps per second.
        dimensions: d, of a command.

    Raises:
        ConfigError: limits that do not fit the dimensions or each other.
    """

    def __init__(self, limits: Limits, *, control_hz: float, dimensions: int) -> None:
        resolved = limits.resolve(dimensions)
        self.limits = resolved
        per_step = [resolved.velocity / control_hz, resolved.acceleration / control_hz**2, resolved.jerk / control_hz**3]
        V, A, q = (bound[:, None].copy() for bound in per_step)
        self._free = ~np.isfinite(V)
        V[self._free] = 1.0  # these dimensions are only clipped; the numbers keep the arithmetic finite
        A[~np.isfinite(A)] = 2 * V[~np.isfinite(A)]  # from -V to V in one step: never binding
        q[~np.isfinite(q)] = 2 * A[~np.isfinite(q)]
        self._V, self._A, self._q = V, A, q
        self._low, self._high = resolved.position_low[:, None].copy(), resolved.position_high[:, None].copy()
        # Walls for the certificate: those of the dimensions that are only clipped need none.
        self._wall_low = np.where(self._free, -np.inf, self._low)
        self._wall_high = np.where(self._free, np.inf, self._high)
        self._all_free = bool(self._free.all())
        self._brake = Brake(V, A, q)
        self._pursuit = Brake(*(np.concatenate([bound, bound]) for bound in (2 * V, A, q)))  # relative to a moving target
        self._ramps = A / q + 4
        self._allocate(dimensions, self._brake.steps)

    def _allocate(self, d: int, n: int) -> None:
        self._x, self._v, self._a, self._moved, self._command, self._target, self._last = (np.zeros((d, 1)) for _ in range(7))
        self._least, self._most, self._want, self._chase, self._r, self._s, self._share = (np.zeros((d, 1)) for _ in range(7))
        self._gap = np.zeros((d, 1))
        self._kept, self._off, self._inside = (np.empty((d, 1), bool) for _ in range(3))
        self._both, self._fast, self._ends = (np.zeros((2 * d, 1)) for _ in range(3))
        self._both_least, self._both_most = self._both[:d], self._both[d:]
        self._fast_least, self._fast_most = self._fast[:d], self._fast[d:]
        self._ends_least, self._ends_most = self._ends[:d], self._ends[d:]
        self._ways = np.zeros((2 * d, self._pursuit.steps))
        self._weight = float(self._pursuit.steps + 1)
        self._weights = np.arange(self._weight - 1, 0.0, -1.0)
        self._stop, self._new, self._gain = (np.zeros((d, n + 1)) for _ in range(3))
        self._path, self._ratio, self._new_path = (np.empty((d, n + 1)) for _ in range(3))
        self._beyond, self._towards = np.empty((d, n + 1), bool), np.empty((d, n + 1), bool)
        self._stop_first, self._stop_rest, self._stop_end = self._stop[:, :1], self._stop[:, :-1], self._stop[:, -1:]
        self._stop_tail, self._steps_ahead = self._stop[:, 1:], np.arange(1.0, n + 2)
        self._new_first, self._new_rest = self._new[:, :1], self._new[:, 1:]
        self._flat_command, self._position, self._displacement = self._command[:, 0], self._x[:, 0], self._moved[:, 0]
        self._certified = True  # whether `_stop` holds a way to rest from here

    @property
    def position(self) -> np.ndarray:
        """The last command "d" that was given out; the array is overwritten by the next one."""
        return self._position

    @property
    def displacement(self) -> np.ndarray:
        """By how much "d" it differs from the one before; overwritten by the next one."""
        return self._displacement

    def reset(self, position: np.ndarray) -> bool:
        """Begin at rest at `position` "d", which must lie within the bounds; whether it does (if not, nothing changes)."""
        given = np.asarray(position, np.float64).reshape(self._x.shape)
        if not ((given >= self._low) & (given <= self._high) & np.isfinite(given)).all():
            return False
        for column in (self._x, self._target, self._last):
            column[...] = given
        for array in (self._v, self._a, self._moved, self._stop):
            array.fill(0.0)
        self._certified = True
        return True

    def step(self, command: np.ndarray) -> bool:
        """Move on towards `command` "d"; whether `position` differs from it. A command that is not finite brakes instead."""
        np.copyto(self._flat_command, command)
        np.isfinite(self._command, out=self._kept)
        if not np.logical_and.reduce(self._kept, axis=None):
            self.brake()
            return True
        np.maximum(self._command, self._low, out=self._target)
        np.minimum(self._target, self._high, out=self._target)
        if not self._all_free:
            self._choose()
            self._certify()
            np.add(self._v, self._stop_first, out=self._r)
            np.add(self._r, self._x, out=self._r)
            np.copyto(self._target, self._r, where=self._off)
        self._move()
        np.copyto(self._last, self._command)
        np.subtract(self._x, self._command, out=self._r)
        np.abs(self._r, out=self._r)
        np.abs(self._command, out=self._s)
        np.add(self._s, 1.0, out=self._s)
        np.multiply(self._s, ROUNDING, out=self._s)
        np.greater(self._r, self._s, out=self._off)
        return bool(np.logical_or.reduce(self._off, axis=None))

    def brake(self) -> None:
        """Move on towards rest, by the way that is held ready; at rest, stay."""
        np.copyto(self._target, self._x)
        if not self._all_free:
            self._ensure_stop()
            np.add(self._v, self._stop_first, out=self._r)
            np.add(self._target, self._r, out=self._target)
            np.copyto(self._target, self._x, where=self._free)
        self._move()
        np.copyto(self._last, self._x)

    def _choose(self) -> None:
        """The wanted acceleration, and in `_off` where it does not lead to the target."""
        # What jerk, acceleration and velocity allow; the allowed range holds what the way to rest begins with.
        np.subtract(self._V, self._v, out=self._r)
        largest_start(self._r, self._q, self._most, self._s)
        np.minimum(self._most, self._A, out=self._most)
        np.add(self._a, self._q, out=self._s)
        np.minimum(self._most, self._s, out=self._most)
        np.add(self._V, self._v, out=self._r)
        largest_start(self._r, self._q, self._least, self._s)
        np.minimum(self._least, self._A, out=self._least)
        np.negative(self._least, out=self._least)
        np.subtract(self._a, self._q, out=self._s)
        np.maximum(self._least, self._s, out=self._least)
        # What leads to the target at once.
        np.subtract(self._target, self._x, out=self._want)
        np.subtract(self._want, self._v, out=self._want)
        np.multiply(self._q, ROUNDING, out=self._s)
        np.subtract(self._least, self._s, out=self._r)
        np.less(self._want, self._r, out=self._off)
        np.add(self._most, self._s, out=self._r)
        np.greater(self._want, self._r, out=self._kept)
        np.logical_or(self._off, self._kept, out=self._off)
        if np.logical_or.reduce(self._off, axis=None):
            self._pursue()
            np.copyto(self._want, self._chase, where=self._off)
        np.maximum(self._want, self._least, out=self._want)
        np.minimum(self._want, self._most, out=self._want)
        np.copyto(self._want, 0.0, where=self._free)
        np.copyto(self._off, False, where=self._free)

    def _pursue(self) -> None:
        """Into `_chase`: the acceleration after which the quickest way to rest ends at the target, or the nearest allowed.

        All is relative to the target, which moves on as in the last step, unless it jumped. The ways that begin with the
        least and with the most acceleration end at two places; their mixture that ends at the target begins with the answer.
        """
        speed, gap = self._share, self._gap
        np.subtract(self._target, self._last, out=speed)
        np.abs(speed, out=self._s)
        np.greater(self._s, self._V, out=self._kept)
        np.copyto(speed, 0.0, where=self._kept)
        np.subtract(self._target, self._x, out=gap)
        np.subtract(gap, speed, out=gap)
        np.subtract(self._v, speed, out=self._r)
        np.copyto(self._both_least, self._least)
        np.copyto(self._both_most, self._most)
        np.add(self._both_least, self._r, out=self._fast_least)
        np.add(self._both_most, self._r, out=self._fast_most)
        self._pursuit.solve(self._fast, self._both, self._ways)
        # Where a way ends: the velocity of its first step counts n + 1 times, its j-th acceleration n + 1 - j times.
        np.multiply(self._ways, self._weights, out=self._ways)
        np.add.reduce(self._ways, axis=1, keepdims=True, out=self._ends)
        np.multiply(self._fast, self._weight, out=self._fast)
        np.add(self._ends, self._fast, out=self._ends)
        np.subtract(gap, self._ends_least, out=gap)
        np.subtract(self._ends_most, self._ends_least, out=self._s)
        np.maximum(self._s, TINY, out=self._s)
        np.divide(gap, self._s, out=gap)
        np.maximum(gap, 0.0, out=gap)
        np.minimum(gap, 1.0, out=gap)
        np.subtract(self._most, self._least, out=self._chase)
        np.multiply(self._chase, gap, out=self._chase)
        np.add(self._chase, self._least, out=self._chase)

    def _far_from_walls(self) -> bool:
        """Whether the wanted acceleration leaves room to stop by a generous estimate, so that no certificate is needed.

        While |p| is taken back by q, the speed rises to at most |w| + p^2 / (2 q); from a speed s, ramps and braking take at
        most |p| / q + s / A + A / q steps, and 4 more for whole steps.
        """
        np.add(self._v, self._want, out=self._chase)
        np.add(self._x, self._chase, out=self._gap)
        np.abs(self._chase, out=self._chase)
        np.abs(self._want, out=self._r)
        np.divide(self._r, self._q, out=self._s)
        np.multiply(self._r, self._s, out=self._r)
        np.multiply(self._r, 0.5, out=self._r)
        np.add(self._chase, self._r, out=self._chase)
        np.divide(self._chase, self._A, out=self._r)
        np.add(self._r, self._s, out=self._r)
        np.add(self._r, self._ramps, out=self._r)
        np.multiply(self._chase, self._r, out=self._chase)
        np.add(self._gap, self._chase, out=self._r)
        np.less_equal(self._r, self._wall_high, out=self._kept)
        np.subtract(self._gap, self._chase, out=self._r)
        np.greater_equal(self._r, self._wall_low, out=self._inside)
        np.logical_and(self._kept, self._inside, out=self._kept)
        return bool(np.logical_and.reduce(self._kept, axis=None))

    def _certify(self) -> None:
        """Into `_stop`: a way to rest that begins with the wanted acceleration, or as much of it as the walls allow."""
        if self._far_from_walls():
            np.copyto(self._stop_first, self._want)
            self._certified = False
            return
        self._ensure_stop()
        np.copyto(self._new_first, self._want)
        np.add(self._v, self._want, out=self._r)
        self._brake.solve(self._r, self._want, self._new_rest)
        # Positions of the way that is held, and how the new one differs from it.
        self._integrate(self._stop, self._path)
        np.add(self._path, self._x, out=self._path)
        np.multiply(self._steps_ahead, self._v, out=self._ratio)
        np.add(self._path, self._ratio, out=self._path)
        np.subtract(self._new, self._stop, out=self._new)
        self._integrate(self._new, self._gain)
        np.add(self._path, self._gain, out=self._new_path)
        self._share.fill(1.0)
        self._cap_share(np.greater, self._wall_high)
        self._cap_share(np.less, self._wall_low)
        np.multiply(self._new, self._share, out=self._new)
        np.add(self._stop, self._new, out=self._stop)
        np.less(self._share, 1.0, out=self._kept)
        np.logical_or(self._off, self._kept, out=self._off)

    def _cap_share(self, beyond: np.ufunc, wall: np.ndarray) -> None:
        """Lower `_share` such that the mixture stays on the right side of the wall, where the new way goes beyond it."""
        beyond(self._new_path, wall, out=self._beyond)
        if not np.logical_or.reduce(self._beyond, axis=None):
            return
        beyond(self._gain, 0.0, out=self._towards)  # not so where the old way is beyond as well, by rounding
        np.logical_and(self._beyond, self._towards, out=self._beyond)
        self._ratio.fill(1.0)
        np.subtract(wall, self._path, out=self._ratio, where=self._beyond)
        np.divide(self._ratio, self._gain, out=self._ratio, where=self._beyond)
        np.minimum.reduce(self._ratio, axis=1, keepdims=True, out=self._r)
        np.maximum(self._r, 0.0, out=self._r)
        np.minimum(self._share, self._r, out=self._share)

    def _integrate(self, accelerations: np.ndarray, out: np.ndarray) -> None:
        np.add.accumulate(accelerations, axis=1, out=self._ratio)
        np.add.accumulate(self._ratio, axis=1, out=out)

    def _ensure_stop(self) -> None:
        if not self._certified:
            self._brake.solve(self._v, self._a, self._stop_rest)
            self._stop_end.fill(0.0)
            self._certified = True

    def _move(self) -> None:
        """Go to `_target`, and keep what remains of the way to rest."""
        np.maximum(self._target, self._low, out=self._target)
        np.minimum(self._target, self._high, out=self._target)
        np.subtract(self._target, self._x, out=self._moved)
        np.copyto(self._x, self._target)
        if self._all_free:
            return
        np.subtract(self._moved, self._v, out=self._a)
        np.copyto(self._v, self._moved)
        np.copyto(self._a, 0.0, where=self._free)
        np.copyto(self._v, 0.0, where=self._free)
        np.copyto(self._new_rest, self._stop_tail)
        np.copyto(self._stop_rest, self._new_rest)
        self._stop_end.fill(0.0)
