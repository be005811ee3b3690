"""Ways: accelerations until rest, step by step."""

from collections.abc import Iterable, Sequence
from itertools import chain
from struct import pack_into
from typing import final

import numpy as np

from drifting_policy.control.braking import Brake, Way


@final
class Ways:
    """Writes out the ways of several brakes in one go, a row for each, in memory of its own.

    All arrays have one shape, constants included: NumPy takes several times as long where it has to stretch or convert one.

    Args:
        brakes: one for each row.
        steps: n, of a row.
    """

    def __init__(self, brakes: Sequence[Brake], *, steps: int) -> None:
        self.steps = steps
        shape = (len(brakes), steps)
        A, q = (np.array([[getattr(brake, bound)] for brake in brakes]) for bound in ("acceleration", "jerk"))
        i = np.arange(1.0, steps + 1)
        self._fallen, self._lowest, self._one = i * q, -A + np.zeros(shape), np.ones(shape)
        self._i, self._q = i + np.zeros((2, *shape)), q + np.zeros((2, *shape))
        stretched = np.zeros((5, *shape))
        self._taus, self._given = stretched[:2], stretched[1:]
        self._next, self._tau, self._p, self._share, self._sign = stretched
        numbers = np.zeros((len(brakes), 4))
        self._format, self._numbers, self._columns = f"{numbers.size}d", numbers.data, numbers.T[:, :, None]
        self._alphas, self._line = np.zeros((2, *shape)), np.zeros(shape)
        self._later, self._sooner = self._alphas

    def write(self, ways: Iterable[Way]) -> np.ndarray:
        """The accelerations "row n" of steps 1, 2, ... n, overwritten by the next call."""
        pack_into(self._format, self._numbers, 0, *chain.from_iterable(ways))  # NumPy takes three times as long for it
        self._given[...] = self._columns
        np.add(self._tau, self._one, out=self._next)
        # -q max(tau - i, 0) for both tau, then the largest of the three sequences.
        np.minimum(self._i, self._taus, out=self._alphas)
        np.subtract(self._alphas, self._taus, out=self._alphas)
        np.multiply(self._alphas, self._q, out=self._alphas)
        np.subtract(self._p, self._fallen, out=self._line)
        np.maximum(self._line, self._lowest, out=self._line)
        np.maximum(self._line, self._sooner, out=self._sooner)
        np.maximum(self._line, self._later, out=self._later)
        # sooner + share * (later - sooner), mirrored back.
        np.subtract(self._later, self._sooner, out=self._later)
        np.multiply(self._later, self._share, out=self._later)
        np.add(self._sooner, self._later, out=self._sooner)
        np.multiply(self._sooner, self._sign, out=self._sooner)
        return self._sooner
