"""What in a data set deserves a second look before anything is trained on it: sentences, one for each finding.

A finding is no error. Every threshold is a constant below, chosen so that clean recordings stay silent.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from drifting_policy.data.replay_buffer import ReplayBuffer

OUTLIER = 10.0  # robust deviations (1.4826 times the median distance from the median)
REPEATED = 0.05  # share of steps that equal the one before
RARE = 0.01  # share of the steps; what is more frequent is a second mode
UNIT = 1e-3  # how near to 1 the length of a quaternion is
WRAP = {"2 pi": 2 * math.pi, "360": 360.0}
WRAP_SHARE = 0.1  # how near a jump is to a whole turn, in turns
FEW_VALUES = 10
LIKE = 0.05  # share of the variance of the actions that may remain where they are like a state
EQUAL = 1e-8
LAGS = range(11)
STEPS = 20_000  # compared with each other at most
ACTIONS = ("action", "actions")
TIMES = ("timestamp", "timestamps", "time")


def findings(buffer: ReplayBuffer) -> Iterator[str]:
    """All findings, array by array; each begins with the name of the array and, in brackets, the element at fault."""
    for key, values in buffer.arrays.items():
        image = values.ndim == 4 and values.dtype == np.uint8
        yield from repeated_steps(key, values, buffer.episode_ends)
        if image or values.dtype.kind == "b":
            continue
        flat = values.reshape(len(values), -1).astype(np.float64)
        for element in range(flat.shape[1]):
            name = key if values.ndim == 1 else f"{key}[{element}]"
            yield from odd_channel(name, flat[:, element], buffer.episode_ends, floating=values.dtype.kind == "f")
        yield from odd_groups(key, flat, buffer.episode_ends)
        if key.split("/")[-1] in TIMES and values.ndim == 1:
            yield from odd_times(key, flat[:, 0], buffer.episode_ends)
    yield from copied_actions(buffer)


def odd_channel(name: str, values: np.ndarray, ends: np.ndarray, *, floating: bool) -> Iterator[str]:
    """Findings about one number per step: constant, few whole values, far outliers, an angle that wraps."""
    low, high = values.min(), values.max()
    if low == high:
        yield f"{name} is constant ({low:g})."
        return
    if floating and (values == np.round(values)).all() and len(few := np.unique(values)) <= FEW_VALUES:
        yield f"{name} takes {len(few)} whole values only ({', '.join(f'{value:g}' for value in few)})."
        return
    distance = np.abs(values - np.median(values))
    deviation = 1.4826 * np.median(distance)
    far = distance > OUTLIER * deviation
    if deviation > 0 and 0 < far.mean() < RARE:
        step = int(np.argmax(distance))
        yield (
            f"{name} has {counted(far.sum(), 'value')} beyond {OUTLIER:g} robust deviations from the median, "
            f"the farthest at step {step} ({values[step]:g}, {distance[step] / deviation:.0f} deviations)."
        )
    steps = np.abs(within_episodes(values, ends))
    for period, turn in WRAP.items():
        jumps = np.abs(steps - turn) < WRAP_SHARE * turn
        if jumps.any() and high - low < 1.05 * turn and np.median(steps) < WRAP_SHARE * turn:
            often = counted(jumps.sum(), "time")
            yield f"{name} jumps by {period} {often}: an angle that wraps; its sine and cosine would not."


def odd_groups(key: str, values: np.ndarray, ends: np.ndarray) -> Iterator[str]:
    """Findings about neighbouring numbers of a step: a choice of one of several, quaternions and their changes of sign."""
    count = values.shape[1]
    if count > 1 and np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all():
        yield f"{key} is one-hot: exactly one of {count} elements is 1 at every step."
    first = 0
    while first + 4 <= count:
        part = values[:, first : first + 4]
        moving = (part.max(0) > part.min(0)).sum() >= 2
        if moving and np.isin(part, (0, 1)).all():
            moving = False
        if moving and (np.abs(np.linalg.norm(part, axis=1) - 1) < UNIT).all():
            later = np.delete(np.arange(1, len(part)), ends[:-1] - 1)
            flips = int(((part[later] * part[later - 1]).sum(1) < 0).sum())
            changes = f" that changes its sign {counted(flips, 'time')}" if flips else ""
            yield f"{key}[{first}..{first + 3}] has length 1: a unit quaternion{changes}."
            first += 4
        else:
            first += 1


def repeated_steps(key: str, values: np.ndarray, ends: np.ndarray) -> Iterator[str]:
    """A finding where many steps are equal to the one before, as when a camera or a sensor is slower than the recording."""
    later = np.delete(np.arange(1, len(values)), ends[:-1] - 1)
    if not len(later) or key.split("/")[-1].endswith("_index") or values.dtype.kind == "b":
        return
    later = later[:: max(1, len(later) // 2000)] if values.ndim == 4 else later
    size = 64 if values.ndim == 4 else len(later)
    parts = [later[start : start + size] for start in range(0, len(later), size)]
    equal = np.concatenate([(values[part] == values[part - 1]).reshape(len(part), -1).all(1) for part in parts])
    if REPEATED <= equal.mean() < 1:
        yield f"{key} repeats itself: {equal.mean():.0%} of the steps are equal to the one before."


def odd_times(key: str, values: np.ndarray, ends: np.ndarray) -> Iterator[str]:
    """Findings about time: steps at the same time or backwards, and gaps."""
    steps = within_episodes(values, ends)
    if not len(steps):
        return
    if (still := (steps <= 0).sum()) > 0:
        yield f"{key} does not advance at {counted(still, 'step')}."
    usual = np.median(steps)
    if usual > 0 and (gaps := (steps > 1.5 * usual).sum()) > 0:
        yield f"{key} has {counted(gaps, 'gap')} longer than 1.5 usual steps, the longest of {steps.max() / usual:.1f}."


def copied_actions(buffer: ReplayBuffer) -> Iterator[str]:
    """Findings about actions that equal a recorded state, or a state some steps later."""
    for key, values in buffer.arrays.items():
        if key.split("/")[-1].split(".")[-1] not in ACTIONS or values.dtype.kind not in "fiu" or values.ndim > 2:
            continue
        for other, state in buffer.arrays.items():
            if other != key and state.dtype.kind == "f" and state.ndim >= 2:
                yield from _copied(key, values, other, state, buffer.episode_ends)


def within_episodes(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Differences "n - episodes ..." of consecutive steps of the same episode."""
    return np.delete(np.diff(values, axis=0), ends[:-1] - 1, axis=0)


def counted(number: int | np.integer, noun: str) -> str:
    """The number and its noun: 1 step, 2 steps."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _copied(key: str, action: np.ndarray, other: str, state: np.ndarray, ends: np.ndarray) -> Iterator[str]:
    """Compares the actions with every run of as many elements of the state, 0 to 10 steps later."""
    actions = action.reshape(len(action), -1)[:STEPS].astype(np.float64)
    states = state.reshape(len(state), -1)[:STEPS].astype(np.float64)
    width, spread = actions.shape[1], actions.var(0).sum()
    if spread == 0 or states.shape[1] > 512:
        return
    remains: Mapping[tuple[int, int], float] = {
        (first, lag): _remains(actions, states[:, first : first + width], ends, lag) / spread
        for first in range(states.shape[1] - width + 1)
        for lag in LAGS
    }
    if not remains:
        return
    (first, lag), least = min(remains.items(), key=lambda item: (item[1], item[0][1]))
    which = f"{other}[{first}..{first + width - 1}]" if width < states.shape[1] else other
    later = f"{counted(lag, 'step')} later"
    if least < EQUAL:
        yield f"{key} equals {which}{f' {later}' if lag else ''}: it commands what was measured."
    elif least < LIKE:
        when = later if lag else "at the same step"
        yield f"{key} is most like {which} {when} ({least:.1%} of its variance remains): a position, reached with that delay."


def _remains(actions: np.ndarray, states: np.ndarray, ends: np.ndarray, lag: int) -> float:
    """Mean squared distance of actions from the states `lag` steps later in the same episode."""
    episode = np.searchsorted(ends, np.arange(len(actions)), side="right")
    rows = np.flatnonzero(episode[: len(episode) - lag] == episode[lag:])
    return float(((actions[rows] - states[rows + lag]) ** 2).sum(1).mean()) if len(rows) else math.inf
