"""What a controller tells to whoever records it."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from drifting_policy.control.status import Status
from drifting_policy.types import PolicySpec


@runtime_checkable
class Recorder(Protocol):
    """Is told everything that decides what the robot does. It must return quickly, and copy what it keeps: arrays are reused.

    An error that it raises ends the recording, not the loop; the report tells it.
    """

    def attached(self, spec: PolicySpec, options: Mapping[str, Any], *, max_prefix: int) -> None:
        """A controller was made: what its policy sees and commands, and the settings that it was made with.

        An error here is the controller's: who asks for a recording that cannot be made must hear of it before the robot moves.
        """
        ...

    def began(self, seed: int) -> None:
        """An episode begins, with the noise of `seed`."""
        ...

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
        chunk: np.ndarray | None,
        spread: float,
    ) -> None:
        """A plan has come: its number in the episode, the time of its newest observation, when it was drawn, the chunk "t d".

        The chunk is None where the policy failed, or where the plan came too late to belong to anything. `noise` "k t d" is
        that of all k candidates, or None for zero noise; `prefix` "n d" the commands it had to begin with; `spread` how much
        the candidates differ.
        """
        ...

    def acted(self, t: float, action: np.ndarray, status: Status) -> None:
        """A command "d" was given out."""
        ...
