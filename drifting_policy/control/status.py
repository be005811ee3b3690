"""What the controller says about the command that it gives."""

from enum import IntEnum


class Status(IntEnum):
    """Why this command, from best to worst; where two hold, the worse one is told.

    OK: the due step of a plan, as the policy gave it.
    LIMITED: the same, changed to keep the limits.
    LATE: the due step of a plan, but the next plan missed its deadline.
    HOLD: no step is due, or the data are stale: the fallback commands.
    STOP: a stop that lasts until `reset`: the robot is brought to rest and stays there.
    """

    OK = 0
    LIMITED = 1
    LATE = 2
    HOLD = 3
    STOP = 4
