"""When commands are due: the loop's own grid of control steps, and the planned commands on it."""

from typing import final

import numpy as np

NEVER = -(2**62)  # the label of a slot without command
DRIFT = 0.05  # share of a tick's deviation that the grid follows


@final
class Grid:
    """Numbers the control steps of a loop that runs at about `control_hz`.

    Step k is at origin + k / control_hz. A step that is called up to half a period early or late keeps its number; later, a
    number is left out. The origin follows slowly, so that a loop whose rate is slightly off never sits between two steps.
    """

    def __init__(self, control_hz: float) -> None:
        self._hz = control_hz
        self._origin: float | None = None

    def reset(self) -> None:
        """Forget the origin: the next step is number 0."""
        self._origin = None

    def advance(self, now: float) -> int:
        """The number of the control step at `now`, which the grid then follows."""
        if self._origin is None:
            self._origin = now
        steps = (now - self._origin) * self._hz
        tick = round(steps)
        self._origin += DRIFT * (steps - tick) / self._hz
        return tick

    def tick(self, time: float) -> int:
        """The number of the control step nearest to `time`."""
        return 0 if self._origin is None else round((time - self._origin) * self._hz)


@final
class Schedule:
    """The commands of the coming control steps, in a ring of fixed memory; a newer chunk replaces what an older one planned.

    Args:
        steps: commands from now on of one chunk, the most that can lie ahead.
        dimensions: d, of a command.
    """

    def __init__(self, *, steps: int, dimensions: int) -> None:
        self._size = 2 * steps
        self._commands = np.zeros((self._size, dimensions))
        self._rows = [self._commands[slot] for slot in range(self._size)]
        self._ticks = [NEVER] * self._size
        self._sources = [0.0] * self._size

    def clear(self) -> None:
        """Forget all commands."""
        self._ticks[:] = [NEVER] * self._size

    def command(self, tick: int) -> np.ndarray | None:
        """The command "d" that is due at control step `tick`, or None; overwritten when its slot is used again."""
        slot = tick % self._size
        return self._rows[slot] if self._ticks[slot] == tick else None

    def source(self, tick: int) -> float:
        """The time of the observation from which the command at `tick` was planned."""
        return self._sources[tick % self._size]

    def ahead(self, tick: int, out: np.ndarray) -> int:
        """Copies the commands of `tick`, `tick` + 1, ... into the rows of `out`, up to the first that is missing; how many."""
        for count, row in enumerate(out):
            command = self.command(tick + count)
            if command is None:
                return count
            row[...] = command
        return len(out)

    def install(self, commands: np.ndarray, *, first_tick: int, now_tick: int, t_obs: float, fade_steps: int = 0) -> int:
        """Plan `commands` "n d" for `first_tick` and the steps after it; those before `now_tick` are late and dropped.

        The first `fade_steps` that are in time lead over linearly from the commands that were planned before, as far as there
        are any: the i-th of them (from 1) takes the share i / (fade_steps + 1) of the new one. Returns how many were dropped.
        """
        late = min(max(now_tick - first_tick, 0), len(commands))
        for index in range(late, len(commands)):
            tick = first_tick + index
            slot, row = tick % self._size, self._rows[tick % self._size]
            share = (index - late + 1) / (fade_steps + 1)
            if share < 1 and self._ticks[slot] == tick:
                row *= 1 - share
                row += share * commands[index]
            else:
                row[...] = commands[index]
            self._ticks[slot], self._sources[slot] = tick, t_obs
        return late
