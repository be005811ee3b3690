"""Watchdog: how old data may become before the robot waits, and before it stops."""

import dataclasses
import math
from typing import final

from drifting_policy.control.status import Status
from drifting_policy.types import ConfigError


@final
@dataclasses.dataclass(frozen=True)
class Watchdog:
    """Ages in seconds: of the newest observation, and of the observation that the current command was planned from.

    Beyond a `hold` age the fallback commands until fresh data are there; beyond a `stop` age the robot stops for good.
    """

    observation_hold: float = math.inf
    observation_stop: float = math.inf
    chunk_hold: float = math.inf
    chunk_stop: float = math.inf

    def __post_init__(self) -> None:
        for hold, stop in ((self.observation_hold, self.observation_stop), (self.chunk_hold, self.chunk_stop)):
            if not 0 < hold <= stop:
                raise ConfigError(f"A watchdog needs 0 < hold age <= stop age, in seconds; got {hold} and {stop}.")

    @staticmethod
    def suited(*, period: float, chunk_seconds: float) -> "Watchdog":
        """Hold after 5 missing observations or when a chunk is used up; stop a second, or another 20 periods, later."""
        grace = max(1.0, 20 * period)
        hold = 5 * period
        return Watchdog(hold, hold + grace, chunk_seconds + hold, chunk_seconds + hold + grace)

    def judge(self, observation_age: float, chunk_age: float) -> Status:
        """OK, HOLD or STOP; an age that is NaN is too old."""
        if not (observation_age <= self.observation_stop and chunk_age <= self.chunk_stop):
            return Status.STOP
        if not (observation_age <= self.observation_hold and chunk_age <= self.chunk_hold):
            return Status.HOLD
        return Status.OK
