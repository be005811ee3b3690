"""The expert of BlockPush: one block into one target, back to where it began, and the other block into the other target.

Four modes: which block goes first, and into which target. Nothing in the observation tells which will be taken.
"""

from typing import Final, Literal

import numpy as np

from drifting_policy.envs.block_push import BLOCKS, COMMAND, HOME, MODES, TARGETS

LARGEST_STEP: Final = 0.03  # of the effector's target, m; as in the published demonstrations
TURN_STEP: Final = 0.008
NOISE: Final = 5e-4  # standard deviation of each element of an action, m
CLEARANCE: Final = 0.045  # between the effector and the centre of a block that it passes, m
NEAR: Final = 0.003  # a place within so many metres is reached
LEVER: Final = 0.014  # how far off the middle of a face a block is pushed to turn it, m
CROOKED, STRAIGHT = 0.2, 0.04  # rad between push and face: beyond the first a block is turned, until the second is met
Phase = Literal["approach", "turn", "push", "retreat", "home"]


class Expert:
    """Acts in one episode of BlockPush, in the mode MODES[`mode`]."""

    def __init__(self, rng: np.random.Generator, mode: int) -> None:
        """Draw the manner of this episode from `rng`, which also makes its noise."""
        block, target = MODES[mode]
        self._rng = rng
        self._pairs = [(block, target), (1 - block, 1 - target)]
        self._phase: Phase = "approach"
        self._entry: np.ndarray | None = None  # from where the block was pushed first
        self._standoff = rng.uniform(0.048, 0.06)  # behind the centre of a block, where a push begins, m
        self._lead = rng.uniform(0.014, 0.018)  # of the effector's target into a block that it pushes, m
        self._enough = rng.uniform(0.03, 0.04)  # the distance of the first block from its target at which it is left, m

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The action (2,) in m, a displacement of at most 3 cm, for the observation (16,)."""
        state = np.asarray(obs, np.float64)
        step = self._step(state) + NOISE * self._rng.standard_normal(2)
        return np.asarray(step * min(1.0, LARGEST_STEP / np.linalg.norm(step)))

    def _step(self, state: np.ndarray) -> np.ndarray:
        """The next step without its noise; moves on to the next phase where one has come to its end."""
        (block, target), tip = self._pairs[0], state[COMMAND : COMMAND + 2]
        x, y, yaw = state[BLOCKS[block] : BLOCKS[block] + 3]
        centre, way = np.array([x, y]), state[TARGETS[target] : TARGETS[target] + 2] - (x, y)
        distance = float(np.linalg.norm(way))
        if self._phase not in ("retreat", "home") and len(self._pairs) > 1 and distance < self._enough:
            self._phase = "retreat"
        if self._phase in ("retreat", "home"):
            return self._return(state, tip)
        ahead = way / max(distance, 1e-9)
        skew = quarter(np.arctan2(ahead[1], ahead[0]) - yaw)
        if self._phase == "approach":
            behind = centre - self._standoff * ahead
            if np.linalg.norm(behind - tip) > NEAR:
                return self._travel(state, tip, behind)
            self._phase = "turn" if abs(skew) > CROOKED else "push"
            self._entry = behind if self._entry is None else self._entry
        if self._phase == "turn":
            return self._turn(tip, centre, ahead, skew)
        return self._push(tip, centre, ahead, skew)

    def _push(self, tip: np.ndarray, centre: np.ndarray, ahead: np.ndarray, skew: float) -> np.ndarray:
        """Towards the line through the block and its target, with the lead that moves the block on."""
        if abs(skew) > CROOKED:
            self._phase = "approach"
            return -LARGEST_STEP * ahead
        return shortened(centre - (0.026 - self._lead) * ahead - tip, 0.02)

    def _turn(self, tip: np.ndarray, centre: np.ndarray, ahead: np.ndarray, skew: float) -> np.ndarray:
        """Against the nearest face, beside its middle, until the face is square to the push."""
        inward = turned(ahead, -skew)
        left = np.array([-inward[1], inward[0]])
        along, across = (tip - centre) @ inward, (tip - centre) @ left
        if abs(skew) < STRAIGHT or along > -0.015:
            self._phase = "approach"
            return -LARGEST_STEP * inward
        beside = -np.sign(skew) * LEVER  # pushed left of its middle, a block turns to the right
        if along < -0.034 and abs(across - beside) > NEAR:
            return shortened((beside - across) * left - (along + 0.04) * inward, LARGEST_STEP)
        return shortened((beside - across) * left, TURN_STEP / 2) + TURN_STEP * inward

    def _return(self, state: np.ndarray, tip: np.ndarray) -> np.ndarray:
        """Back along the push, and home; from there to the other block."""
        goal = np.asarray(HOME) if self._phase == "home" or self._entry is None else self._entry
        if np.linalg.norm(goal - tip) > NEAR:
            return self._travel(state, tip, goal)
        if self._phase == "retreat":
            self._phase = "home"
        else:
            self._phase = "approach"
            self._pairs.pop(0)
        return np.zeros(2)

    def _travel(self, state: np.ndarray, tip: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Straight to `goal`, or around the first block in the way."""
        way = goal - tip
        for centre in sorted((state[i : i + 2] for i in BLOCKS), key=lambda place: float(np.linalg.norm(place - tip))):
            share = (centre - tip) @ way / max(way @ way, 1e-12)
            foot = tip + min(max(share, 0.0), 1.0) * way
            if 0 < share and np.linalg.norm(foot - centre) < CLEARANCE:
                normal = np.array([-way[1], way[0]]) / np.linalg.norm(way)
                side = 1.0 if (foot - centre) @ normal >= 0 else -1.0
                return shortened(centre + 1.1 * CLEARANCE * side * normal - tip, LARGEST_STEP)
        return shortened(way, LARGEST_STEP)


def turned(vector: np.ndarray, angle: float) -> np.ndarray:
    """`vector` (2,) turned to the left by `angle`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1]])


def quarter(angle: float) -> float:
    """`angle` less the nearest quarter turns: a square block looks the same after each, in -pi/4..pi/4."""
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def shortened(step: np.ndarray, length: float) -> np.ndarray:
    """`step`, or one of `length` in its direction where it is longer."""
    return np.asarray(step * min(1.0, length / max(float(np.linalg.norm(step)), 1e-12)))
