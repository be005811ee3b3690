"""The scripted expert of the conveyor: it sees what a policy sees, and goes round the post on the side that it is told."""

from collections.abc import Mapping
from typing import final

import numpy as np

from drifting_policy.envs.conveyor import BIN, LEFT, LIFTED, POST, POST_WIDTH, REACH, RIGHT, STEP_SECONDS

OPEN, CLOSED = 0.08, 0.02  # m; closed on a block of 0.04 m
HOVER, GRASP, CARRY, DROP = 0.14, 0.078, 0.17, 0.07  # heights of the gripper, m
FASTEST = 0.045  # way of the target in one step, m
AHEAD = 0.11  # s: the gantry trails a moving target by 50 ms, and what is seen now is 50 ms old when the step ends
CLOSE_STEPS, RELEASE_STEPS = 6, 4
ABOVE_BELT = ("hover", "descend", "close")


@final
class ConveyorExpert:
    """One episode: hover above the moving block, descend, close, lift, go round the post, lower, open.

    Args:
        side: LEFT or RIGHT.
        margin: distance between the post and the line that the middle of the gripper follows, m.
    """

    def __init__(self, *, side: int, margin: float = 0.12) -> None:
        if side not in (LEFT, RIGHT):
            raise ValueError(f"side must be {LEFT} (left) or {RIGHT} (right); got {side}.")
        beside, along = POST + np.array([-side * (POST_WIDTH + margin), 0.01]), np.array([0.0, 0.06])
        self._way = [beside - along, beside + along, BIN]
        self._phase, self._waited = "hover", 0
        self._seen: np.ndarray | None = None
        self._speed = np.zeros(3)
        self._command = np.zeros(3)

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The target [x, y, z, opening] in m, float32, for the newest `gripper` (4,) and `block` (3,)."""
        gripper = observation["gripper"].astype(np.float64)
        block = observation["block"].astype(np.float64)
        if self._seen is None:
            self._command = gripper[:3]
        elif self._phase != "close":  # a block in the hand moves as the hand does: follow the belt
            self._speed = (block - self._seen) / STEP_SECONDS
        self._seen = block
        self._advance(gripper, block)
        wanted, opening = self._target(block)
        # Above the belt the command goes with the block, and only what is missing is limited.
        drift = self._speed * STEP_SECONDS * (self._phase in ABOVE_BELT)
        way = wanted - self._command - drift
        length = float(np.linalg.norm(way))
        self._command = self._command + drift + way * min(1.0, FASTEST / max(length, 1e-9))
        return np.array([*self._command, opening]).clip(*REACH).astype(np.float32)

    def _advance(self, gripper: np.ndarray, block: np.ndarray) -> None:
        """To the next phase, where this one has done its work."""
        aside = np.abs(gripper[:2] - block[:2]).max()
        self._waited += 1
        if self._phase == "hover" and aside < 0.008 and gripper[2] < HOVER + 0.02:
            self._begin("descend")
        elif self._phase == "descend" and gripper[2] < GRASP + 0.006:
            self._begin("close")
        elif self._phase == "close" and self._waited >= CLOSE_STEPS:
            self._begin("lift")
        elif self._phase == "lift" and block[2] > LIFTED + 0.01:
            self._begin("carry")
        elif self._phase == "carry" and np.linalg.norm(gripper[:2] - self._way[0]) < 0.03:
            self._way = self._way[1:]
            self._begin("carry" if self._way else "lower")
        elif self._phase == "lower" and gripper[2] < DROP + 0.01:
            self._begin("open")

    def _begin(self, phase: str) -> None:
        self._phase, self._waited = phase, 0

    def _target(self, block: np.ndarray) -> tuple[np.ndarray, float]:
        """Where the gripper shall be, and how far open."""
        if self._phase in ("hover", "descend"):
            ahead = block[:2] + self._speed[:2] * AHEAD
            return np.array([*ahead, HOVER if self._phase == "hover" else GRASP]), OPEN
        if self._phase == "close":
            return self._command + self._speed * STEP_SECONDS, CLOSED
        if self._phase == "lift":
            return np.array([*self._command[:2], CARRY]), CLOSED
        if self._phase == "carry":
            return np.array([*self._way[0], CARRY]), CLOSED
        return np.array([*BIN, DROP]), OPEN if self._phase == "open" else CLOSED
