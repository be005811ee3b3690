"""Smoothness: how hard commands accelerate and jerk where one plan takes over from another, and elsewhere. Pure functions."""

from dataclasses import dataclass

import numpy as np

from drifting_policy.types import PolicySpec


@dataclass(frozen=True)
class Motion:
    """Lengths of finite differences of commands, in raw action units per s² and s³; None where there are none."""

    max_acceleration: float | None
    mean_acceleration: float | None
    max_jerk: float | None
    mean_jerk: float | None


@dataclass(frozen=True)
class Smoothness:
    """The motion at the boundaries of chunks, where differences span two plans, and that inside of them."""

    boundary: Motion
    inside: Motion


def switches(spec: PolicySpec, *, committed: int, steps: int) -> np.ndarray:
    """The steps of an episode of so many `steps` at which the first command of another plan is executed.

    A plan is made every exec_horizon steps, and its first `committed` commands are those of the plan before.
    """
    return np.arange(spec.exec_horizon + committed, steps, spec.exec_horizon)


def differences(commands: np.ndarray, *, order: int, control_hz: float) -> np.ndarray:
    """Euclidean lengths "s - order" of the finite differences of `commands` "s d", per second to the power of `order`.

    Forward differences: of order 2, (c[i+2] - 2 c[i+1] + c[i]) hz², and of order 3, (c[i+3] - 3 c[i+2] + 3 c[i+1] - c[i]) hz³.
    """
    return np.linalg.norm(np.diff(np.asarray(commands, np.float64), n=order, axis=0), axis=-1) * control_hz**order


def spanning(places: np.ndarray, *, steps: int, order: int) -> np.ndarray:
    """Which of the `steps` - `order` differences have commands on both sides of one of the switches at `places`."""
    first = np.arange(max(steps - order, 0))[:, None]
    return np.asarray(((first < places) & (places <= first + order)).any(axis=1))


def smoothness(commands: np.ndarray, places: np.ndarray, *, control_hz: float) -> Smoothness:
    """That of an episode's `commands` "s d", where another plan takes over at each step of `places`."""
    boundary: list[float | None] = []
    inside: list[float | None] = []
    for order in (2, 3):
        lengths = differences(commands, order=order, control_hz=control_hz)
        across = spanning(places, steps=len(commands), order=order)
        boundary += _extent(lengths[across])
        inside += _extent(lengths[~across])
    return Smoothness(Motion(*boundary), Motion(*inside))


def _extent(lengths: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    return (float(lengths.max()), float(lengths.mean())) if lengths.size else (None, None)
