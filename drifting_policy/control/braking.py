"""Brake: the quickest way of one dimension to a standstill. All in units per control step."""

from math import ceil, copysign, floor, sqrt
from typing import TypeAlias, final

Way: TypeAlias = tuple[float, float, float, float]  # tau, p, share and sign; see `Brake.way`


def largest_start(total: float, step: float) -> float:
    """The largest y >= 0 with y + (y - step) + (y - 2 step) + ... <= total, the sum over its positive terms.

    That is: the highest speed from which a distance `total` suffices to brake by `step` a step, and the highest acceleration
    that adds no more than the velocity `total` while it is taken back. With n = floor(y / step), the sum of the n + 1 positive
    terms is (n + 1) y - step n (n + 1) / 2, and at y = n step it is step n (n + 1) / 2: solving the latter for n and the former
    for y is exact. `total` is taken as 0 where it is negative by rounding.
    """
    if total < 0.0:
        total = 0.0
    n = floor((sqrt(8.0 * total / step + 1.0) - 1.0) * 0.5)  # one off by rounding changes nothing: the sum is continuous there
    return total / (n + 1) + 0.5 * n * step


@final
class Brake:
    """Accelerations that bring a velocity w and an acceleration p to zero.

    Mirrored so that braking means to accelerate downwards, the acceleration of step i = 1, 2, ... is

        alpha_i(tau) = max(p - i q, -A, -q max(tau - i, 0)),

    down from p by the jerk q, along the bound A, up again by q so that it ends at step tau. As the largest of three sequences
    that change by at most q a step, it does so too. Its sum F(tau) falls with tau; of the lattice tau = |p| / q + 0, 1, 2, ...
    the two neighbours with F >= -w >= F are mixed such that the sum is -w exactly; a mixture of sequences within bounds is
    within them.

    Args:
        velocity, acceleration, jerk: the bounds per step, per step squared and cubed, finite.

    Attributes:
        velocity, acceleration, jerk: as given.
        steps: n, after so many steps every admissible motion has come to rest.
    """

    def __init__(self, velocity: float, acceleration: float, jerk: float) -> None:
        self.velocity, self.acceleration, self.jerk = velocity, acceleration, jerk
        # The longest way to rest takes an acceleration back (A / q steps), then ramps to -A, brakes and ramps to zero again.
        self.steps = ceil(2.0 * acceleration / jerk + velocity / acceleration) + 4
        self._ramp = acceleration / jerk

    def way(self, w: float, p: float) -> Way:
        """The way to rest after a step with the acceleration `p` that led to the velocity `w`, as four numbers.

        They are tau, the mirrored p, share and sign: the acceleration of step i is sign * ((1 - share) * alpha_i(tau) + share *
        alpha_i(tau + 1)). `Ways` writes them out.
        """
        A, q, size = self.acceleration, self.jerk, abs(p)
        first = size / q
        n = floor(first)
        # The sign of the velocity that is left when p is taken back as quickly as possible tells which way to brake.
        left = w + copysign(n * size - (n + 1) * (n * q) * 0.5, p)
        sign = copysign(1.0, left)
        p, total = p * sign, -w * sign
        # Where the neighbours are in continuous time, with the braking at its peak on top; in steps, there or one beside.
        begin = -p if p < 0.0 else 0.0
        peak = sqrt(begin * begin + q * abs(left))
        top = peak if peak < A else A
        j = floor(2.0 * (top - begin) / q + (peak * peak - top * top) / (q * A))
        above, below = self._sum(j + first, p), self._sum(j + 1 + first, p)
        while above < total and j > 0:
            j, above, below = j - 1, self._sum(j - 1 + first, p), above
        while below >= total:
            j, above, below = j + 1, below, self._sum(j + 2 + first, p)
        if j == 1:
            above = min(above, self._sum(first, p))  # where p is a multiple of q these differ by rounding only
        share = (above - total) / (above - below) if above > total else 0.0
        return j + first, p, share, sign

    def reach(self, w: float, p: float) -> float:
        """Where that way ends at most, counted from before the step of velocity `w`.

        Its velocities add up to minus the sum of i alpha_i, mirrored back; of the two profiles that are mixed, the later leads
        further in its direction.
        """
        tau, p, _, sign = self.way(w, p)
        return -self._moment(tau + 1.0, p) if sign > 0.0 else self._moment(tau, p)

    def _sum(self, tau: float, p: float) -> float:
        """F, as three arithmetic series.

        Up to m = floor((p / q + tau) / 2) the falling line lies above the rising one; where both lie below -A, between m1 and
        m2, the bound holds; n = floor(tau) steps in all.
        """
        A, q = self.acceleration, self.jerk
        m, n = floor((tau + p / q) * 0.5), floor(tau)
        m1, m2 = floor((p + A) / q), ceil(tau - self._ramp) - 1
        m1, m2 = m1 if m1 < m else m, m2 if m2 > m else m
        falling, bound = m1 * (p - (m1 + 1) * 0.5 * q), (m2 - m1) * A
        rising = (tau - (n + m2 + 1) * 0.5) * (n - m2) * q
        return falling - (rising + bound)

    def _moment(self, tau: float, p: float) -> float:
        """The sum of i alpha_i, likewise."""
        A, q = self.acceleration, self.jerk
        m, n = floor((tau + p / q) * 0.5), floor(tau)
        m1, m2 = floor((p + A) / q), ceil(tau - self._ramp) - 1
        m1, m2 = m1 if m1 < m else m, m2 if m2 > m else m
        t1, t2, t3 = m1 * (m1 + 1) * 0.5, m2 * (m2 + 1) * 0.5, n * (n + 1) * 0.5
        falling, bound = t1 * (p - (2 * m1 + 1) / 3.0 * q), (t2 - t1) * A
        rising = t3 * (tau - (2 * n + 1) / 3.0) - t2 * (tau - (2 * m2 + 1) / 3.0)
        return falling - (rising * q + bound)
