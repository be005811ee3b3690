"""Histogram: how long something took, many times over, in a fixed amount of memory."""

import array
import math
from collections.abc import Mapping
from typing import Any, final

from drifting_policy.types import ConfigError

GROWTH = 1.01  # upper over lower end of a bin
QUANTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}


@final
class Histogram:
    """Durations in bins whose ends grow by one percent each, as in HdrHistogram; all memory is taken at the beginning.

    One thread records; another may read meanwhile and sees a state that is at most a few records old.
    """

    def __init__(self, low: float | int = 1e-6, high: float | int = 100.0) -> None:
        """An empty histogram that tells durations between `low` and `high` seconds apart, and counts others at these ends.

        Raises:
            ConfigError: unless 0 < low < high, both finite.
        """
        if not 0 < low < high < math.inf:
            raise ConfigError(f"A histogram needs 0 < low < high, in seconds and finite; got {low} and {high}.")
        self.low, self.high = float(low), float(high)
        self._bins = math.ceil(math.log(self.high / self.low) / math.log(GROWTH))
        self._per_log = self._bins / math.log(self.high / self.low)
        self._counts = array.array("Q", bytes(8 * self._bins))
        self._count, self._max = 0, 0.0

    def record(self, seconds: float | int) -> None:
        """Count one duration. It never raises: what is no number (NaN) counts as `high`, for nothing good is known of it."""
        if not seconds < self.high:
            seconds, place = (seconds if seconds > self.high else self.high), self._bins - 1
        elif seconds <= self.low:
            place = 0
        else:
            place = min(int(math.log(seconds / self.low) * self._per_log), self._bins - 1)
        self._counts[place] += 1
        self._count += 1
        if seconds > self._max:
            self._max = float(seconds)

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return self._count

    @property
    def max(self) -> float:
        """The longest duration in seconds, exactly; NaN before the first."""
        return self._max if self._count else math.nan

    def percentile(self, q: float | int) -> float:
        """Seconds that `q` percent of the durations do not exceed; NaN when empty.

        It is the upper end of the bin of the duration of rank ceil(q/100 * count), so at most one percent too long and never
        too short, within `low` and `high`; and never longer than the longest.

        Raises:
            ValueError: unless 0 <= q <= 100.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"A percentile lies between 0 and 100; got {q}.")
        rank, seen = max(1, math.ceil(q / 100 * self._count)), 0
        for place, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                end = self.low * math.exp((place + 1) / self._per_log) if place + 1 < self._bins else self.high
                return min(end, self._max)
        return self.max

    def summary(self) -> dict[str, float | None]:
        """p50, p95, p99, p99.9 and the longest in milliseconds, for people and JSON; None when empty."""
        values = {name: self.percentile(q) for name, q in QUANTILES.items()} | {"max": self.max}
        return {name: round(1000 * value, 4) if self._count else None for name, value in values.items()}

    def merge(self, other: "Histogram") -> None:
        """Count all that `other` counted.

        Raises:
            ValueError: where its ends are others.
        """
        if (self.low, self.high) != (other.low, other.high):
            raise ValueError("Histograms of one range can be merged; these have different ends.")
        for place, count in enumerate(other._counts):
            self._counts[place] += count
        self._count += other._count
        self._max = max(self._max, other._max)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values that `from_dict` reads; `bins` holds [place, count] of every bin that is not empty."""
        bins = [[place, count] for place, count in enumerate(self._counts) if count]
        return {"low": self.low, "high": self.high, "max": self._max, "bins": bins}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Histogram":
        """The histogram that `to_dict` wrote."""
        histogram = Histogram(float(values["low"]), float(values["high"]))
        for place, count in values["bins"]:
            histogram._counts[place] += count
            histogram._count += count
        histogram._max = float(values["max"])
        return histogram
