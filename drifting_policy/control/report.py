"""Report: what happened in a controller's loop since it began."""

import dataclasses
from typing import Any, final

from drifting_policy.control.latency import Histogram


@final
class Faults:
    """The newest thing that went wrong, as a sentence, and how many did."""

    def __init__(self) -> None:
        self.newest: str | None = None
        self.count = 0

    def tell(self, sentence: str) -> None:
        """Something went wrong."""
        self.newest = sentence
        self.count += 1

    def tell_once(self, sentence: str) -> None:
        """The same, of something that lasts: unless it is the newest already."""
        if sentence != self.newest:
            self.tell(sentence)


@final
@dataclasses.dataclass(frozen=True)
class Report:
    """Counts and times of one controller; all times in seconds.

    Attributes:
        statuses: control steps by the name of their status.
        plans: plans asked for.
        misses: plans that were not there `deadline` after their observation, or failed.
        failures: plans that ended in an error, among the misses.
        dropped: planned commands that were late when their plan arrived.
        refused: observations that were not accepted.
        fault: the newest thing that went wrong, or None.
        faults: how many things went wrong.
        inference: time of a call of the policy (all candidates together), warm-up excluded.
        age: of the observation that a command was planned from, when it was given out.
        jitter: deviation of a control step's length from the period.
        action: time of a call of `action`.
    """

    statuses: dict[str, int]
    plans: int
    misses: int
    failures: int
    dropped: int
    refused: int
    fault: str | None
    faults: int
    inference: Histogram
    age: Histogram
    jitter: Histogram
    action: Histogram

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; of each histogram its percentiles in milliseconds."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: {"count": value.count, **_milliseconds(value)} if isinstance(value, Histogram) else value
            for name, value in values.items()
        }


def _milliseconds(histogram: Histogram) -> dict[str, float | None]:
    if not histogram.count:
        return {}
    percentiles = {f"p{q:g}_ms": 1000 * histogram.percentile(q) for q in (50, 95, 99, 99.9)}
    return {**percentiles, "max_ms": 1000 * histogram.max}
