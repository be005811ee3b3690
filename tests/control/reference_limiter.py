"""What the limiter computes, in plain NumPy: a column for each dimension, sums over the whole lattice, nothing left out.

Slow, and the yardstick for the limiter that runs on the robot: its commands must be these, bit for bit.
"""

import numpy as np

from drifting_policy.control.limits import Limits


def largest_start(total: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The largest y >= 0 with y + (y - step) + (y - 2 step) + ... <= total."""
    total = np.maximum(total, 0.0)
    n = np.floor((np.sqrt(total * 8.0 / step + 1.0) - 1.0) * 0.5)
    return total / (n + 1.0) + n * 0.5 * step


class ReferenceBrake:
    """The quickest way to rest; bounds are columns "d 1"."""

    def __init__(self, V: np.ndarray, A: np.ndarray, q: np.ndarray) -> None:
        self.A, self.q = A, q
        self.steps = int(np.ceil(2 * A / q + V / A).max()) + 4

    def way(self, w: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Accelerations "d n" after a step with the acceleration `p` that led to the velocity `w`."""
        first = np.abs(p) / self.q
        n = np.floor(first)
        left = w + np.copysign(n * np.abs(p) - (n + 1.0) * (n * self.q) * 0.5, p)
        sign = np.copysign(1.0, left)
        p, w = p * sign, w * sign
        tau = np.arange(0.0, self.steps + 1) + first
        total = self.total(tau, p)
        above = total >= -w
        above[:, 0], above[:, -1] = True, False
        over = np.min(total, axis=1, keepdims=True, where=above, initial=np.inf)
        under = np.max(total, axis=1, keepdims=True, where=~above, initial=-np.inf)
        with np.errstate(divide="ignore"):  # where both are equal, the share is zero
            share = np.clip((over + w) / (over - under), 0.0, 1.0)
        near = above.sum(axis=1, keepdims=True) - 1.0 + tau[:, :1]
        sooner, later = self.profile(near, p), self.profile(near + 1.0, p)
        return ((later - sooner) * share + sooner) * sign

    def total(self, tau: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The sum of the profile of every `tau`."""
        A, q = self.A, self.q
        m, n = np.floor((tau + p / q) * 0.5), np.floor(tau)
        m1, m2 = np.minimum(m, np.floor((p + A) / q)), np.maximum(m, np.ceil(tau - A / q) - 1.0)
        rising = (tau - (n + m2 + 1.0) * 0.5) * (n - m2) * q
        return m1 * (p - (m1 + 1.0) * 0.5 * q) - (rising + (m2 - m1) * A)

    def profile(self, tau: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Accelerations that fall from `p`, keep the bound, and rise to zero at step `tau`."""
        i = np.arange(1.0, self.steps + 1)
        return np.maximum(p - i * self.q, np.maximum(np.minimum(i - tau, 0.0) * self.q, -self.A))


class ReferenceLimiter:
    """A limiter; see `Limiter`. Positions are columns inside, and flat outside."""

    def __init__(self, limits: Limits, *, control_hz: float, dimensions: int) -> None:
        bounds = limits.resolve(dimensions)
        V, A, q = (
            bound[:, None] / control_hz**order
            for order, bound in enumerate((bounds.velocity, bounds.acceleration, bounds.jerk), start=1)
        )
        self.free = np.isinf(V)
        self.V = np.where(self.free, 1.0, V)
        self.A = np.where(np.isinf(A), 2 * self.V, A)
        self.q = np.where(np.isinf(q), 2 * self.A, q)
        self.low, self.high = bounds.position_low[:, None], bounds.position_high[:, None]
        self.walls = np.where(self.free, -np.inf, self.low), np.where(self.free, np.inf, self.high)
        self.brake_, self.pursuit = ReferenceBrake(self.V, self.A, self.q), ReferenceBrake(2 * self.V, self.A, self.q)

    def reset(self, position: np.ndarray) -> None:
        """Begin at rest."""
        self.x = self.last = np.array(position, np.float64)[:, None]
        self.v = self.a = self.moved = np.zeros_like(self.x)
        self.stop: np.ndarray | None = np.zeros((len(position), self.brake_.steps + 1))

    @property
    def position(self) -> np.ndarray:
        """The last command "d"."""
        return self.x[:, 0]

    @property
    def displacement(self) -> np.ndarray:
        """By how much "d" it differs from the one before."""
        return self.moved[:, 0]

    def step(self, command: np.ndarray) -> bool:
        """Move on towards `command`; whether the position differs from it."""
        if not np.isfinite(command).all():
            self.brake()
            return True
        command = np.array(command, np.float64)[:, None]
        target = np.clip(command, self.low, self.high)
        want, off = self.choose(target)
        first, capped = self.certify(want)
        self.move(np.where(off | capped, self.v + first + self.x, target))
        self.last = command
        return bool((np.abs(self.x - command) > (np.abs(command) + 1.0) * 1e-9).any())

    def brake(self) -> None:
        """Move on towards rest."""
        self.move(np.where(self.free, self.x, self.x + (self.v + self.held()[:, :1])))
        self.last = self.x

    def choose(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The wanted accelerations, and where they do not lead to the target at once."""
        most = np.minimum(np.minimum(largest_start(self.V - self.v, self.q), self.A), self.a + self.q)
        least = np.maximum(-np.minimum(largest_start(self.V + self.v, self.q), self.A), self.a - self.q)
        want, slack = target - self.x - self.v, self.q * 1e-9
        off = ((want < least - slack) | (want > most + slack)) & ~self.free
        want = np.where(off, self.chase(target, least, most), want)
        return np.where(self.free, 0.0, np.minimum(np.maximum(want, least), most)), off

    def chase(self, target: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
        """The accelerations after which the quickest way to rest, relative to the target, ends there."""
        speed = target - self.last
        speed = np.where(np.abs(speed) > self.V, 0.0, speed)
        n, ends = self.pursuit.steps, []
        for start in (least, most):
            fast = start + (self.v - speed)
            way = self.pursuit.way(fast, start) * np.arange(n, 0.0, -1.0)
            ends.append(way.sum(axis=1, keepdims=True) + fast * (n + 1.0))
        share = np.clip((target - self.x - speed - ends[0]) / np.maximum(ends[1] - ends[0], 1e-300), 0.0, 1.0)
        return (most - least) * share + least

    def certify(self, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the walls leave of the wanted accelerations, and where that is less; keeps the way to rest after it."""
        w, ramp = self.v + want, np.abs(want) / self.q
        speed = np.abs(w) + np.abs(want) * ramp * 0.5
        room = speed * (speed / self.A + ramp + (self.A / self.q + 4))
        if ((self.x + w + room <= self.walls[1]) & (self.x + w - room >= self.walls[0])).all():
            self.stop = None
            return want, np.zeros_like(self.free)
        stop = self.held()
        gain = np.concatenate([want, self.brake_.way(w, want)], axis=1) - stop
        path = stop.cumsum(axis=1).cumsum(axis=1) + self.x + np.arange(1.0, stop.shape[1] + 1) * self.v
        way = gain.cumsum(axis=1).cumsum(axis=1)
        share = np.ones_like(want)
        for wall, sign in ((self.walls[1], 1.0), (self.walls[0], -1.0)):
            beyond = (sign * (path + way) > sign * wall) & (sign * way > 0)
            ratio = np.divide(wall - path, way, out=np.ones_like(way), where=beyond)
            share = np.minimum(share, np.maximum(ratio.min(axis=1, keepdims=True), 0.0))
        self.stop = stop + gain * share
        return self.stop[:, :1], share < 1

    def held(self) -> np.ndarray:
        """The way to rest "d n+1" from here."""
        if self.stop is None:
            way = self.brake_.way(self.v, self.a)
            self.stop = np.concatenate([way, np.zeros_like(self.v)], axis=1)
        return self.stop

    def move(self, target: np.ndarray) -> None:
        """Take the step, and what is left of the way to rest."""
        target = np.clip(target, self.low, self.high)
        self.moved = target - self.x
        self.a, self.v = np.where(self.free, 0.0, self.moved - self.v), np.where(self.free, 0.0, self.moved)
        self.x = target
        if self.stop is not None:
            self.stop = np.concatenate([self.stop[:, 1:], np.zeros_like(self.v)], axis=1)
