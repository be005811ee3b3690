"""The motion of one gripper along a plan of phases: where to go, how fast, how the fingers stand, and when to go on.

A plan is a tuple of `Phase`s whose targets are pure functions of the state; `Motion` walks through it and turns the way that is
left into actions of a delta OSC_POSE controller. A state is the observation dictionary of robosuite, quaternions "x y z w".

Frames: positions and rotations are those of the world. A gripper's rotation is that of its grip site: the fingers close along
its x axis, the palm looks along z.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

State = Mapping[str, np.ndarray]

REACH: Final = 0.05  # m that an action of 1 moves the goal of the controller
TURN: Final = 0.5  # rad, likewise
OPEN: Final = -1.0
CLOSED: Final = 1.0


@dataclass(frozen=True)
class Pose:
    """`position` (3,) in metres and `rotation` (3, 3)."""

    position: np.ndarray
    rotation: np.ndarray

    def moved(self, offset: Sequence[float] | np.ndarray) -> "Pose":
        """The same rotation at a position moved by `offset` (3,) m along the axes of the world."""
        return Pose(self.position + np.asarray(offset, dtype=np.float64), self.rotation)

    def at(self, offset: Sequence[float] | np.ndarray) -> np.ndarray:
        """The position (3,) in the world of the point that lies at `offset` (3,) m in this pose's own axes."""
        return np.asarray(self.position + self.rotation @ np.asarray(offset, dtype=np.float64))


Target = Callable[[State, Pose], Pose]  # of the state and the pose in which the phase began


@dataclass(frozen=True)
class Phase:
    """One leg of a plan, over once the gripper is `near` its target for at least `steps` steps, or after `patience` steps.

    `target` gives the pose to go to, `fingers` is OPEN or CLOSED, `speed` bounds the norm of the translation an action asks for
    and `turn` that of its rotation, `near` are the distances in m and rad that count as arrived, `gain` is the share of the
    way that one action asks for. To be over, the translation must also have come down to `calm`, and `until` must hold.
    """

    target: Target
    fingers: float
    speed: float = 1.0
    turn: float = 0.5
    near: tuple[float, float] = (0.01, 0.1)
    gain: float = 1.0
    calm: float = np.inf
    steps: int = 1
    patience: int = 80
    until: Callable[[State], bool] | None = None


@dataclass(frozen=True)
class Manner:
    """How a demonstration moves: `pace` scales all speeds, `onset` bounds the change of an action per step, `noise` its tremor.

    The tremor is a first-order autoregressive process with standard deviation `noise` times the size of the action and
    correlation `memory` from step to step: who holds still does not tremble.
    """

    pace: float = 1.0
    onset: float = 0.3
    noise: float = 0.08
    memory: float = 0.85


def draw_manner(rng: np.random.Generator) -> Manner:
    """A manner at random: between two thirds of the full speed and all of it, with brisk or gentle changes."""
    return Manner(pace=rng.uniform(0.65, 1.0), onset=rng.uniform(0.2, 0.4), noise=rng.uniform(0.04, 0.1))


class Motion:
    """One gripper on its way through the phases of a plan; `act` is called once per control step."""

    def __init__(
        self,
        rng: np.random.Generator,
        phases: Sequence[Phase],
        *,
        manner: Manner | None = None,
        arm: str = "robot0",
        frame: np.ndarray | None = None,
    ) -> None:
        """Begin `phases`; the tremor comes from `rng`, and so does the manner where none is given.

        `arm` is the prefix of the gripper's observations. `frame` (3, 3) has the axes, in the world, along which the controller
        understands translations and rotations; the world's own where none is given.
        """
        self.rng = rng
        self.phases = tuple(phases)
        self.manner = draw_manner(rng) if manner is None else manner
        self.arm = arm
        self.frame = np.eye(3) if frame is None else frame
        self.index = 0
        self._steps = 0
        self._start: Pose | None = None
        self._twist = np.zeros(6)
        self._tremor = np.zeros(6)

    @property
    def finished(self) -> bool:
        """Whether the last phase is over; further actions hold its target."""
        return self.index >= len(self.phases)

    def act(self, state: State) -> np.ndarray:
        """The action (7,) in [-1, 1]: translation in units of REACH, rotation vector in units of TURN, fingers."""
        pose = gripper_pose(state, self.arm)
        while not self.finished and self._is_over(state, pose):
            self.index, self._steps, self._start = self.index + 1, 0, None
        phase = self.phases[min(self.index, len(self.phases) - 1)]
        self._start = pose if self._start is None else self._start
        self._steps += 1
        speed, turn = self.manner.pace * phase.speed, self.manner.pace * phase.turn
        wanted = step_towards(pose, phase.target(state, self._start), gain=phase.gain, speed=speed, turn=turn)
        self._twist = self._twist + limited(wanted - self._twist, self.manner.onset)
        twist = self._twist + self._draw_tremor() * repeated_norms(self._twist)
        action = np.concatenate([self.frame.T @ twist[:3], self.frame.T @ twist[3:], [phase.fingers]])
        return np.clip(action, -1.0, 1.0)

    def _is_over(self, state: State, pose: Pose) -> bool:
        """Whether the current phase has reached its target and its other conditions, or has lost its patience."""
        phase = self.phases[self.index]
        if self._start is None or self._steps < phase.steps:
            return False
        distance, angle = gap(pose, phase.target(state, self._start))
        arrived = distance <= phase.near[0] and angle <= phase.near[1] and np.linalg.norm(self._twist[:3]) <= phase.calm
        return bool(arrived and (phase.until is None or phase.until(state))) or self._steps >= phase.patience

    def _draw_tremor(self) -> np.ndarray:
        """The next value (6,) of the autoregressive process, whose standard deviation is `noise`."""
        memory = self.manner.memory
        fresh = self.rng.standard_normal(6) * self.manner.noise
        self._tremor = memory * self._tremor + np.sqrt(1.0 - memory**2) * fresh
        return self._tremor


@final
class Expert:
    """Acts in one episode: every gripper on its own way, their actions in one."""

    def __init__(self, *motions: Motion) -> None:
        """Take the ways, in the order of the robots."""
        self.motions = motions

    def act(self, state: State) -> np.ndarray:
        """The action (7 for each robot) for the observation dictionary `state` of robosuite."""
        return np.concatenate([motion.act(state) for motion in self.motions])


def stay(state: State, start: Pose) -> Pose:
    """The target to remain where the phase began."""
    return start


def shifted(target: Target, offset: Sequence[float] | np.ndarray) -> Target:
    """`target`, moved by `offset` (3,) m along the axes of the world."""
    return lambda state, start: target(state, start).moved(offset)


def lifted(offset: Sequence[float] | np.ndarray) -> Target:
    """The target `offset` (3,) m away from where the phase began."""
    return shifted(stay, offset)


def gripper_pose(state: State, arm: str = "robot0") -> Pose:
    """The pose of the grip site of `arm`."""
    return Pose(np.asarray(state[f"{arm}_eef_pos"], np.float64), matrix(state[f"{arm}_eef_quat_site"]))


def body_pose(state: State, name: str) -> Pose:
    """The pose of the body `name`, such as "cube"."""
    return Pose(np.asarray(state[f"{name}_pos"], np.float64), matrix(state[f"{name}_quat"]))


def step_towards(pose: Pose, target: Pose, *, gain: float = 1.0, speed: float = 1.0, turn: float = 1.0) -> np.ndarray:
    """The action (6,) that asks for the share `gain` of the way from `pose` to `target`, bounded by `speed` and `turn`."""
    move = gain * (target.position - pose.position) / REACH
    spin = gain * rotation_vector(target.rotation @ pose.rotation.T) / TURN
    return np.concatenate([shortened(move, speed), shortened(spin, turn)])


def funnelled(target: Pose, pose: Pose, *, slope: float = 4.0, mouth: float = 0.012) -> Pose:
    """`target`, raised by `slope` times the horizontal distance by which `pose` misses it, beyond `mouth` m: aim, then descend.

    A phase that ends within `mouth` of such a target ends at the target itself.
    """
    miss = np.linalg.norm((target.position - pose.position)[:2])
    return target.moved((0.0, 0.0, slope * max(0.0, float(miss) - mouth)))


def gap(pose: Pose, target: Pose) -> tuple[float, float]:
    """The distance in m and the angle in rad between two poses."""
    angle = np.linalg.norm(rotation_vector(target.rotation @ pose.rotation.T))
    return float(np.linalg.norm(target.position - pose.position)), float(angle)


def limited(twist: np.ndarray, bound: float) -> np.ndarray:
    """`twist` (6,), the norms of its translation and of its rotation bounded by `bound`."""
    return np.concatenate([shortened(twist[:3], bound), shortened(twist[3:], bound)])


def shortened(vector: np.ndarray, bound: float) -> np.ndarray:
    """`vector`, scaled down to the norm `bound` where it is longer."""
    return np.asarray(vector * min(1.0, bound / max(float(np.linalg.norm(vector)), 1e-12)))


def repeated_norms(twist: np.ndarray) -> np.ndarray:
    """The norm of the translation three times, then that of the rotation three times."""
    return np.repeat([np.linalg.norm(twist[:3]), np.linalg.norm(twist[3:])], 3)


def matrix(quaternion: np.ndarray) -> np.ndarray:
    """The rotation matrix (3, 3) of a quaternion "x y z w" that is not zero (Shuster 1993, eq. 121, for active rotations)."""
    x, y, z, w = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + 2.0 * (w * cross + cross @ cross))


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """The quaternion (4,) "x y z w" with w >= 0 of a rotation matrix, through the largest of its components (Shepperd 1978)."""
    trace = np.trace(rotation)
    outer = np.empty((4, 4))  # products of two components each
    outer[:3, :3] = (rotation + rotation.T) / 4.0
    skew = rotation - rotation.T
    outer[3, :3] = outer[:3, 3] = np.array([skew[2, 1], skew[0, 2], skew[1, 0]]) / 4.0
    np.fill_diagonal(outer, np.append(1.0 + 2.0 * np.diag(rotation) - trace, 1.0 + trace) / 4.0)
    row = outer[int(np.argmax(np.diag(outer)))]
    return np.asarray(row / np.linalg.norm(row) * (1.0 if row[3] >= 0 else -1.0))


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """The rotation vector (3,), with an angle in [0, pi] rad, of a rotation matrix (3, 3)."""
    *axis, w = quaternion(rotation)
    sine = float(np.linalg.norm(axis))
    return np.asarray(axis) * (2.0 if sine < 1e-9 else 2.0 * np.arctan2(sine, w) / sine)


def about(axis: Sequence[float] | np.ndarray, angle: float) -> np.ndarray:
    """The matrix (3, 3) of the rotation by `angle` rad about `axis` (3,), which need not have length 1."""
    direction = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    return matrix(np.append(np.sin(angle / 2.0) * direction, np.cos(angle / 2.0)))


def downward(yaw: float) -> np.ndarray:
    """The rotation (3, 3) of a gripper that looks straight down and whose fingers close `yaw` rad from the x axis."""
    x = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def yaw_of(rotation: np.ndarray) -> float:
    """The direction of the x axis of `rotation` in the horizontal plane, in rad from world x."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def nearest_turn(angle: float, reference: float, period: float) -> float:
    """`angle` plus the multiple of `period` that brings it nearest to `reference`, all in rad."""
    return angle + period * np.round((reference - angle) / period)


def draw_offset(rng: np.random.Generator, scale: Sequence[float], *, height: float = 0.0) -> np.ndarray:
    """A random offset (3,) in m: uniform in the box of half edges `scale` (3,) whose centre lies `height` above the origin."""
    return np.asarray(rng.uniform(-1.0, 1.0, 3) * np.asarray(scale) + np.array([0.0, 0.0, height]))
