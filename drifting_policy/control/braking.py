"""Brake: the quickest way to a standstill, as accelerations of the coming steps. All in units per control step."""

from typing import final

import numpy as np


def largest_start(total: np.ndarray, step: np.ndarray, out: np.ndarray, n: np.ndarray) -> None:
    """Into `out`: the largest y >= 0 with y + (y - step) + (y - 2 step) + ... <= total, the sum over its positive terms.

    That is: the highest speed from which a distance `total` suffices to brake by `step` a step, and the highest acceleration
    that adds no more than the velocity `total` while it is taken back. With n = floor(y / step), the sum of the n + 1 positive
    terms is (n + 1) y - step n (n + 1) / 2, and at y = n step it is step n (n + 1) / 2: solving the latter for n and the former
    for y is exact. `n` is scratch; `total` is taken as 0 where it is negative by rounding.
    """
    np.maximum(total, 0.0, out=out)
    np.multiply(out, 8.0, out=n)
    np.divide(n, step, out=n)
    np.add(n, 1.0, out=n)
    np.sqrt(n, out=n)
    np.subtract(n, 1.0, out=n)
    np.multiply(n, 0.5, out=n)
    np.floor(n, out=n)  # one too large or small by rounding changes nothing: the sum is continuous in n there
    # out = (total + step n (n + 1) / 2) / (n + 1) = total / (n + 1) + step n / 2
    np.add(n, 1.0, out=n)
    np.divide(out, n, out=out)
    np.subtract(n, 1.0, out=n)
    np.multiply(n, 0.5, out=n)
    np.multiply(n, step, out=n)
    np.add(out, n, out=out)


@final
class Brake:
    """Accelerations that bring a velocity w and an acceleration p to zero, for d dimensions at once.

    Mirrored so that braking means to accelerate downwards, the acceleration of step i = 1, 2, ... is

        alpha_i(tau) = max(p - i q, -A, -q max(tau - i, 0)),

    down from p by the jerk q, along the bound A, up again by q so that it ends at step tau. As the largest of three sequences
    that change by at most q a step, it does so too. Its sum F(tau) falls with tau; of the lattice tau = |p| / q + 0, 1, 2, ...
    the two neighbours with F >= -w >= F are mixed such that the sum is -w exactly; a mixture of sequences within bounds is
    within them.

    Args:
        velocity, acceleration, jerk: the bounds, columns "d 1" per step, per step squared and cubed, finite.

    Attributes:
        steps: n, after so many steps every admissible motion has come to rest.
    """

    def __init__(self, velocity: np.ndarray, acceleration: np.ndarray, jerk: np.ndarray) -> None:
        # The longest way to rest takes an acceleration back (A / q steps), then ramps to -A, brakes and ramps to zero again.
        self.steps = int(np.ceil(2 * acceleration / jerk + velocity / acceleration).max()) + 4
        self._A, self._q = acceleration, jerk
        self._i = np.arange(1.0, self.steps + 1) + np.zeros_like(jerk)
        self._iq = self._i * jerk
        self._lattice = np.arange(0.0, self.steps + 1) + np.zeros_like(jerk)
        self._tau, self._m, self._n, self._total, self._scratch = (np.empty_like(self._lattice) for _ in range(5))
        self._above = np.empty(self._lattice.shape, bool)
        self._tau_first, self._above_first, self._above_last = self._tau[:, :1], self._above[:, 0], self._above[:, -1]
        self._sign, self._p, self._w, self._r, self._s, self._mix, self._first = (np.empty_like(jerk) for _ in range(7))
        self._other, self._edge = (np.empty_like(self._i) for _ in range(2))

    def solve(self, w: np.ndarray, p: np.ndarray, out: np.ndarray) -> None:
        """Into `out` "d n": the accelerations after a step with the acceleration `p` that led to the velocity `w`."""
        self._mirror(w, p)
        self._totals()
        # The bracket: the smallest total that is still above -w, and the largest below; the mixture that meets -w.
        np.negative(self._w, out=self._s)
        np.greater_equal(self._total, self._s, out=self._above)
        self._above_first.fill(True)  # by construction, up to rounding
        self._above_last.fill(False)
        np.minimum.reduce(self._total, axis=1, keepdims=True, out=self._r, where=self._above, initial=np.inf)
        np.copyto(self._scratch, self._above)  # to sum booleans would need a buffer
        np.add.reduce(self._scratch, axis=1, keepdims=True, out=self._first)
        np.logical_not(self._above, out=self._above)
        np.maximum.reduce(self._total, axis=1, keepdims=True, out=self._mix, where=self._above, initial=-np.inf)
        np.subtract(self._r, self._mix, out=self._mix)  # above zero: F falls strictly below R(p), where -w lies
        np.subtract(self._r, self._s, out=self._r)
        np.divide(self._r, self._mix, out=self._mix)
        np.minimum(self._mix, 1.0, out=self._mix)
        np.maximum(self._mix, 0.0, out=self._mix)
        # tau of the one above; `first` counts those above.
        np.subtract(self._first, 1.0, out=self._first)
        np.add(self._first, self._tau_first, out=self._first)
        self._profile(self._first, out)
        np.add(self._first, 1.0, out=self._first)
        self._profile(self._first, self._other)
        np.subtract(self._other, out, out=self._other)
        np.multiply(self._other, self._mix, out=self._other)
        np.add(out, self._other, out=out)
        np.multiply(out, self._sign, out=out)

    def _mirror(self, w: np.ndarray, p: np.ndarray) -> None:
        """w and p with the sign that makes braking a downward acceleration, and the lattice of tau.

        The velocity that is left when p is taken back as quickly as possible, w + sign(p) sum of max(|p| - i q, 0), decides.
        """
        np.abs(p, out=self._p)
        np.divide(self._p, self._q, out=self._s)
        np.add(self._lattice, self._s, out=self._tau)
        np.floor(self._s, out=self._s)
        np.multiply(self._s, self._p, out=self._r)
        np.multiply(self._s, self._q, out=self._p)
        np.add(self._s, 1.0, out=self._s)
        np.multiply(self._s, self._p, out=self._s)
        np.multiply(self._s, 0.5, out=self._s)
        np.subtract(self._r, self._s, out=self._r)
        np.copysign(self._r, p, out=self._r)
        np.add(w, self._r, out=self._r)
        np.copysign(1.0, self._r, out=self._sign)
        np.multiply(p, self._sign, out=self._p)
        np.multiply(w, self._sign, out=self._w)

    def _totals(self) -> None:
        """F of the lattice, as three arithmetic series.

        Up to m = floor((p / q + tau) / 2) the falling line lies above the rising one; where both lie below -A, between m1 and
        m2, the bound holds; n = floor(tau) steps in all.
        """
        p, q, A, tau, m, n, total, scratch = (
            self._p, self._q, self._A, self._tau, self._m, self._n, self._total, self._scratch
        )  # fmt: skip
        np.divide(p, q, out=self._s)
        np.add(tau, self._s, out=m)
        np.multiply(m, 0.5, out=m)
        np.floor(m, out=m)
        np.add(p, A, out=self._s)
        np.divide(self._s, q, out=self._s)
        np.floor(self._s, out=self._s)
        np.minimum(m, self._s, out=total)  # m1
        np.divide(A, q, out=self._s)
        np.subtract(tau, self._s, out=n)
        np.ceil(n, out=n)
        np.subtract(n, 1.0, out=n)
        np.maximum(m, n, out=m)  # m2
        np.floor(tau, out=n)
        # - q [(n - m2) tau - (n (n + 1) - m2 (m2 + 1)) / 2], by (n - m2) (tau - (n + m2 + 1) / 2)
        np.add(n, m, out=scratch)
        np.add(scratch, 1.0, out=scratch)
        np.multiply(scratch, 0.5, out=scratch)
        np.subtract(tau, scratch, out=scratch)
        np.subtract(n, m, out=n)
        np.multiply(scratch, n, out=scratch)
        np.multiply(scratch, q, out=scratch)
        # - A (m2 - m1)
        np.subtract(m, total, out=m)
        np.multiply(m, A, out=m)
        np.add(scratch, m, out=scratch)
        # m1 (p - q (m1 + 1) / 2)
        np.add(total, 1.0, out=n)
        np.multiply(n, 0.5, out=n)
        np.multiply(n, q, out=n)
        np.subtract(p, n, out=n)
        np.multiply(total, n, out=total)
        np.subtract(total, scratch, out=total)

    def _profile(self, tau: np.ndarray, out: np.ndarray) -> None:
        """Into `out`: alpha_i(tau) for every step i."""
        np.subtract(self._i, tau, out=self._edge)
        np.minimum(self._edge, 0.0, out=self._edge)
        np.multiply(self._edge, self._q, out=self._edge)
        np.negative(self._A, out=self._s)
        np.maximum(self._edge, self._s, out=self._edge)
        np.subtract(self._p, self._iq, out=out)
        np.maximum(out, self._edge, out=out)
