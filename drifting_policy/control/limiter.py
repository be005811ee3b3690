"""Limiter: follows commands as closely as limits allow, and never leaves them."""

from math import isfinite
from typing import final

import numpy as np

from drifting_policy.control.axis import Axis
from drifting_policy.control.braking import Brake
from drifting_policy.control.limits import Limits
from drifting_policy.control.pursuit import Pursuit
from drifting_policy.control.ways import Ways


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
        self.limits = bounds = limits.resolve(dimensions)
        V, A, q = bounds.velocity / control_hz, bounds.acceleration / control_hz**2, bounds.jerk / control_hz**3
        free = np.isinf(V)
        V[free] = 1.0  # these dimensions are only clipped; the numbers keep the arithmetic finite
        A = np.where(np.isinf(A), 2 * V, A)  # from -V to V in one step: never binding
        q = np.where(np.isinf(q), 2 * A, q)
        brakes = [Brake(*row) for row in zip(V.tolist(), A.tolist(), q.tolist(), strict=True)]
        relative = [Brake(2 * brake.velocity, brake.acceleration, brake.jerk) for brake in brakes]  # to a moving target
        longest = max(brake.steps for brake in relative)
        pursuits = [Pursuit(brake, steps=longest) for brake in relative]
        walls = zip(bounds.position_low.tolist(), bounds.position_high.tolist(), strict=True)
        each = zip(walls, brakes, pursuits, free.tolist(), strict=True)
        self._axes = [Axis(*wall, brake=brake, pursuit=pursuit, free=clips) for wall, brake, pursuit, clips in each]
        self._ways = Ways(brakes, steps=max(brake.steps for brake in brakes))
        self._allocate(dimensions, self._ways.steps + 1)

    def _allocate(self, d: int, n: int) -> None:
        self._stop, self._new, self._path, self._gain, self._new_path, self._scratch, self._zero = np.zeros((7, d, n))
        self._beyond, self._towards = np.zeros((2, d, n), bool)
        self._low, self._high = (wall[:, None] + self._zero for wall in (self.limits.position_low, self.limits.position_high))
        self._steps_ahead = np.arange(1.0, n + 1) + self._zero
        self._share, self._least_share, self._none, self._velocity = np.zeros((4, d, 1))
        self._command, self._position, self._displacement = np.zeros((3, d))
        self._held = True  # whether `_stop` is a way to rest from here

    @property
    def position(self) -> np.ndarray:
        """The last command "d" that was given out; the array is overwritten by the next one."""
        return self._position

    @property
    def displacement(self) -> np.ndarray:
        """By how much "d" it differs from the one before; overwritten by the next call."""
        self._displacement[:] = [axis.displacement for axis in self._axes]
        return self._displacement

    def reset(self, position: np.ndarray) -> bool:
        """Begin at rest at `position` "d", which must lie within the bounds; whether it does (if not, nothing changes)."""
        given = np.asarray(position, np.float64).reshape(self._position.shape)
        low, high = self.limits.position_low, self.limits.position_high
        if not ((given >= low) & (given <= high) & np.isfinite(given)).all():
            return False
        for axis, place in zip(self._axes, given.tolist(), strict=True):
            axis.rest(place)
        self._position[:] = given
        self._stop.fill(0.0)
        self._held = True
        return True

    def step(self, command: np.ndarray) -> bool:
        """Move on towards `command` "d"; whether `position` differs from it. A command that is not finite brakes instead."""
        self._command[:] = command
        commands = self._command.tolist()
        if not all(map(isfinite, commands)):
            self.brake()
            return True
        for axis, value in zip(self._axes, commands, strict=True):
            axis.aim(value)
        if all(axis.far_from_walls() for axis in self._axes):
            self._held = False
        else:
            self._certify()
        missed = [axis.move() for axis in self._axes]
        self._position[:] = [axis.position for axis in self._axes]
        return any(missed)

    def brake(self) -> None:
        """Move on towards rest, by the way that is held ready; at rest, stay."""
        self._hold()
        for axis, acceleration in zip(self._axes, self._stop[:, 0].tolist(), strict=True):
            axis.halt(acceleration)
        self._stop[:, :-1] = self._stop[:, 1:]
        self._position[:] = [axis.position for axis in self._axes]

    def _hold(self) -> None:
        """Have a way to rest from here in `_stop`; its last step, which is at rest, stays zero."""
        if not self._held:
            self._stop[:, :-1] = self._ways.write(axis.way() for axis in self._axes)
            self._held = True

    def _certify(self) -> None:
        """Hold a way to rest that begins with the wanted accelerations, or with as much of them as the walls allow."""
        self._hold()
        self._new[:, 0] = [axis.wanted for axis in self._axes]
        self._new[:, 1:] = self._ways.write(axis.next_way() for axis in self._axes)
        # Positions of the way that is held, and how the new one differs from it.
        self._integrate(self._stop, out=self._path)
        self._scratch[...] = self._position[:, None]
        np.add(self._path, self._scratch, out=self._path)
        self._velocity[:, 0] = [axis.velocity for axis in self._axes]
        self._scratch[...] = self._velocity
        np.multiply(self._scratch, self._steps_ahead, out=self._scratch)
        np.add(self._path, self._scratch, out=self._path)
        np.subtract(self._new, self._stop, out=self._new)
        self._integrate(self._new, out=self._gain)
        np.add(self._path, self._gain, out=self._new_path)
        self._share.fill(1.0)
        self._cap_share(np.greater, self._high)
        self._cap_share(np.less, self._low)
        np.maximum(self._share, self._none, out=self._share)
        self._scratch[...] = self._share
        np.multiply(self._new, self._scratch, out=self._new)
        np.add(self._stop, self._new, out=self._new)
        self._stop[:, :-1] = self._new[:, 1:]  # what is left after this step
        for axis, first, share in zip(self._axes, self._new[:, 0].tolist(), self._share[:, 0].tolist(), strict=True):
            axis.grant(first, share=share)

    def _cap_share(self, beyond: np.ufunc, wall: np.ndarray) -> None:
        """Lower `_share` such that the mixture stays on the right side of the wall, where the new way goes beyond it."""
        beyond(self._new_path, wall, out=self._beyond)
        if not np.count_nonzero(self._beyond):
            return
        beyond(self._gain, self._zero, out=self._towards)  # not so where the old way is beyond as well, by rounding
        np.logical_and(self._beyond, self._towards, out=self._beyond)
        self._scratch.fill(1.0)
        np.subtract(wall, self._path, out=self._scratch, where=self._beyond)
        np.divide(self._scratch, self._gain, out=self._scratch, where=self._beyond)
        np.minimum.reduce(self._scratch, axis=1, keepdims=True, out=self._least_share)
        np.minimum(self._share, self._least_share, out=self._share)

    def _integrate(self, accelerations: np.ndarray, *, out: np.ndarray) -> None:
        np.add.accumulate(accelerations, axis=1, out=out)
        np.add.accumulate(out, axis=1, out=out)
