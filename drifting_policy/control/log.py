"""What a controller tells to whoever records it."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from drifting_policy.control.status import Status


@runtime_checkable
class Recorder(Protocol):
    """Is told everything that decides what the robot does. It must return quickly, and copy what it keeps: arrays are reused.

    An error that it raises ends the recording, not the loop; the report tells it.
    """

    def observed(self, t_obs: float, obs: Mapping[str, np.ndarray]) -> None:
        """An observation was accepted: its time, and one step per key."""
        ...

    def planned(
        self,
        plan: int,
        t_obs: float,
        t_begin: float,
        t_end: float,
        noise: np.ndarray | None,
        prefix: np.ndarray | None,
        chunk: np.ndarray,
    ) -> None:
        """A chunk "t d" was installed: its number in the episode, the time of its newest observation, and when it was drawn.

        `noise` "k t d" is that of all k candidates, or None for zero noise; `prefix` "n d" the commands it had to begin with.
        """
        ...

    def acted(self, t: float, action: np.ndarray, status: Status) -> None:
        """A command "d" was given out."""
        ...
