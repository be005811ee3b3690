"""Axis: how one dimension of a command moves, and what it may do next. All in units per control step."""

from typing import final

from drifting_policy.control.braking import Brake, Way, largest_start
from drifting_policy.control.pursuit import Pursuit

ROUNDING = 1e-9  # a command may exceed what is allowed by this share of the allowed change, and still counts as kept


@final
class Axis:
    """One dimension: where it is, how it moves within its limits, and the acceleration that it wants to take next.

    Plain numbers: for the few dimensions of a robot Python is done with them before NumPy has begun.

    Args:
        low, high: bounds of the position, infinite where there is none.
        brake: how it comes to rest, with the other bounds.
        pursuit: how it meets a moving target.
        free: whether commands are only clipped, and the bounds of the brake mean nothing.

    Attributes:
        position: the last command that was given out.
        displacement: by how much it differs from the one before.
        velocity: the same; zero where the axis is free.
        wanted: the acceleration of the next step.
    """

    def __init__(self, low: float, high: float, *, brake: Brake, pursuit: Pursuit, free: bool) -> None:
        self._low, self._high, self._brake, self._pursuit, self._free = low, high, brake, pursuit, free
        self._V, self._A, self._q = brake.velocity, brake.acceleration, brake.jerk
        self._slack, self._ramps = ROUNDING * brake.jerk, brake.acceleration / brake.jerk + 4.0
        self.rest(0.0)

    def rest(self, position: float) -> None:
        """Be at rest at `position`, as if commanded."""
        self.position = self._target = self._command = self._before = position
        self.displacement = self.velocity = self._acceleration = self.wanted = 0.0
        self._off = False

    def aim(self, command: float) -> None:
        """Want the acceleration that leads to `command` at once, or else soonest."""
        self._before, self._command = self._command, command
        self._target, self._off = clip(command, self._low, self._high), False
        if self._free:
            return
        # What jerk, acceleration and velocity allow; the allowed range holds what the way to rest begins with.
        v, a, A, q = self.velocity, self._acceleration, self._A, self._q
        most = min(largest_start(self._V - v, q), A, a + q)
        least = max(-largest_start(self._V + v, q), -A, a - q)
        gap = self._target - self.position
        wanted = gap - v
        if not least - self._slack <= wanted <= most + self._slack:
            self._off = True
            speed = self._target - self._before
            if abs(speed) > self._V:  # it jumped; else the target is taken to move on as in the last step
                speed = 0.0
            wanted = self._pursuit.acceleration(gap - speed, v - speed, least=least, most=most)
        self.wanted = clip(wanted, least, most)

    def far_from_walls(self) -> bool:
        """Whether the wanted acceleration leaves room to stop by a generous estimate, so that no certificate is needed.

        While |p| is taken back by q, the speed rises to at most |w| + p^2 / (2 q); from a speed s, ramps and braking take at
        most |p| / q + s / A + A / q steps, and 4 more for whole steps.
        """
        if self._free:
            return True
        w, p = self.velocity + self.wanted, abs(self.wanted)
        steps = p / self._q
        speed = abs(w) + p * steps * 0.5
        place, room = self.position + w, speed * (speed / self._A + steps + self._ramps)
        return self._low <= place - room and place + room <= self._high

    def way(self) -> Way:
        """The quickest way to rest from here."""
        return self._brake.way(self.velocity, self._acceleration)

    def next_way(self) -> Way:
        """The quickest way to rest after the wanted acceleration."""
        return self._brake.way(self.velocity + self.wanted, self.wanted)

    def grant(self, acceleration: float, *, share: float) -> None:
        """Want `acceleration` instead, a mixture in which what was wanted has that `share`."""
        self.wanted = acceleration
        if share < 1.0:
            self._off = True

    def move(self) -> bool:
        """Take the step; whether it leads elsewhere than commanded."""
        target = self.velocity + self.wanted + self.position if self._off else self._target
        target = clip(target, self._low, self._high)
        self.displacement, self.position = target - self.position, target
        if not self._free:
            self._acceleration, self.velocity = self.displacement - self.velocity, self.displacement
        return abs(target - self._command) > (abs(self._command) + 1.0) * ROUNDING

    def halt(self, acceleration: float) -> None:
        """Take a step of a way to rest, which begins with `acceleration`."""
        self.wanted, self._off = acceleration, True
        self.move()
        self._command = self.position


def clip(value: float, low: float, high: float) -> float:
    """The number in [low, high] that is nearest to `value`."""
    if value < low:
        value = low
    return high if value > high else value
