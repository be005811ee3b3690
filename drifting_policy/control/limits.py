"""Limits: how far, how fast and how abruptly each dimension may move."""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np

from drifting_policy.types import ConfigError

Bound: TypeAlias = float | Sequence[float] | np.ndarray | None


@final
@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the commands, each a number for all dimensions, one per dimension, or None; an infinite element is none.

    Positions are in the action's own unit, the others in that unit per second, per second squared and cubed, as differences of
    successive commands: velocity (x_k - x_{k-1}) / dt and so on. A jerk limit needs one of the acceleration, and that one of
    the velocity: otherwise the way to a standstill would have no bound.
    """

    position_low: Bound = None
    position_high: Bound = None
    velocity: Bound = None
    acceleration: Bound = None
    jerk: Bound = None

    def resolve(self, dimensions: int) -> "ResolvedLimits":
        """The limits as arrays "d" of float64 in which infinity means none.

        Raises:
            ConfigError: a wrong number of values, NaN, a bound that is not positive, low above high, or a limit without the
                one that it needs.
        """
        low, high = self._array("position_low", dimensions, none=-np.inf), self._array("position_high", dimensions)
        if not (low < high).all():
            raise ConfigError(f"position_low must lie below position_high in every dimension; got {low} and {high}.")
        bounds = {name: self._array(name, dimensions) for name in ("velocity", "acceleration", "jerk")}
        for name, bound in bounds.items():
            if not (bound > 0).all():
                raise ConfigError(f"The limit of the {name} must be positive in every dimension; got {bound}.")
        for name, needed in (("jerk", "acceleration"), ("acceleration", "velocity")):
            if (np.isfinite(bounds[name]) & ~np.isfinite(bounds[needed])).any():
                raise ConfigError(f"A limit of the {name} needs one of the {needed} in the same dimension; give both.")
        return ResolvedLimits(low, high, **bounds)

    def _array(self, name: str, dimensions: int, *, none: float = np.inf) -> np.ndarray:
        given = getattr(self, name)
        values = np.asarray(none if given is None else given, dtype=np.float64)
        if values.shape not in {(), (dimensions,)} or np.isnan(values).any():
            raise ConfigError(f"{name} must be one number or {dimensions}, one per dimension; got {given}.")
        return np.broadcast_to(values, (dimensions,)).copy()


@final
@dataclasses.dataclass(eq=False)
class ResolvedLimits:
    """The same for a known number of dimensions: arrays "d" of float64, infinite where there is no limit."""

    position_low: np.ndarray
    position_high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray
