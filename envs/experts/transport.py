"""The expert of robosuite's TwoArmTransport: lid off, hammer out, over to the other arm, into the bin that has been cleared.

Robot 0 stands at -y with the covered bin, robot 1 at +y with the bin that holds the trash. Two styles: both arms set out at
once, or robot 0 waits until the trash is away. Which of the two is seen in no observation.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from drifting_policy.envs.experts.motion import (
    CLOSED,
    OPEN,
    Expert,
    Motion,
    Phase,
    Pose,
    State,
    about,
    body_pose,
    downward,
    draw_manner,
    draw_offset,
    gripper_pose,
    lifted,
    nearest_turn,
    shifted,
    stay,
    yaw_of,
)

STYLES: Final = ("together", "in turn")
UP: Final = np.array([0.0, 0.0, 1.0])
FLOOR: Final = 0.81  # m, the upper side of the floor of a bin
RIM: Final = 0.95  # m, the upper edge of a bin
LONG: Final = 600  # steps: as patient as an episode is long
TAKEN: Final = 0.05  # m between the fingers: less around the handle of the hammer, more when they are open


def expert(rng: np.random.Generator, style: int) -> Expert:
    """Acts in one episode of TwoArmTransport; `style` 0 lets both arms set out at once, 1 lets robot 0 wait for the trash."""
    meeting = np.array([0.0, 0.0, 1.08]) + draw_offset(rng, (0.03, 0.02, 0.03))
    first = (*wait_for_trash(rng, style), *lift_lid(rng), *fetch_hammer(rng), *offer_hammer(rng, meeting))
    second = (*throw_trash(rng), *take_hammer(rng, meeting), *deliver_hammer(rng))
    manner = draw_manner(rng)
    plans = {"robot0": first, "robot1": second}
    return Expert(*(Motion(rng, phases, manner=manner, arm=arm) for arm, phases in plans.items()))


def wait_for_trash(rng: np.random.Generator, style: int) -> tuple[Phase, ...]:
    """Stay until the trash is out of its bin, in the style that waits."""
    steps = int(rng.integers(1, 10))
    if style == 0:
        return (Phase(stay, OPEN, steps=steps),)
    return (Phase(stay, OPEN, steps=steps, patience=LONG, until=trash_is_away),)


def lift_lid(rng: np.random.Generator) -> tuple[Phase, ...]:
    """Robot 0 takes the lid by its handle and lays it on the table beside the bin."""
    above = draw_offset(rng, (0.01, 0.01, 0.02)) + 0.08 * UP
    grasp = draw_offset(rng, (0.002, 0.015, 0.003)) + 0.004 * UP
    aside = np.array([-0.19, -0.45, 0.84]) + draw_offset(rng, (0.02, 0.02, 0.004))
    turn = rng.uniform(-0.05, 0.05)
    raised = rng.uniform(0.07, 0.11) * UP

    def handle(state: State, start: Pose) -> Pose:
        lid = body_pose(state, "lid_handle")
        return Pose(lid.position, downward(nearest_turn(yaw_of(lid.rotation), yaw_of(start.rotation), np.pi)))

    def beside(state: State, start: Pose) -> Pose:
        return Pose(aside, about(UP, turn) @ start.rotation)

    return (
        Phase(shifted(handle, above), OPEN, near=(0.03, 0.2)),
        Phase(shifted(handle, grasp), OPEN, near=(0.008, 0.08), speed=0.6),
        Phase(stay, CLOSED, near=(0.1, 1.0), steps=int(rng.integers(8, 12))),
        Phase(lifted(raised), CLOSED, near=(0.03, 0.2), speed=0.6),
        Phase(shifted(beside, raised), CLOSED, near=(0.03, 0.2)),
        Phase(beside, CLOSED, near=(0.012, 0.2), speed=0.6, patience=40),
        Phase(stay, OPEN, near=(0.1, 1.0), steps=int(rng.integers(4, 8))),
        Phase(lifted(raised), OPEN, near=(0.03, 0.3)),
    )


def fetch_hammer(rng: np.random.Generator) -> tuple[Phase, ...]:
    """Robot 0 takes the hammer by the part of its handle that is nearer to itself, and lifts it out of the bin."""
    above = draw_offset(rng, (0.015, 0.015, 0.02))
    hold = Hold(-rng.uniform(0.02, 0.035), rng.uniform(-0.05, 0.05), rng.uniform(0.2, 0.3))
    clear = rng.uniform(1.05, 1.1)

    def over(state: State, start: Pose) -> Pose:
        pose = hold(state, start)
        return Pose(np.append(pose.position[:2], RIM + 0.09), pose.rotation).moved(above)

    def out(state: State, start: Pose) -> Pose:
        return Pose(np.append(start.position[:2], clear), start.rotation)

    return (
        Phase(over, OPEN, near=(0.03, 0.2)),
        Phase(hold, OPEN, near=(0.02, 0.2), speed=0.8),
        Phase(hold, OPEN, near=(0.006, 0.08), speed=0.5, steps=3, patience=40),
        Phase(stay, CLOSED, near=(0.1, 1.0), steps=int(rng.integers(8, 12))),
        Phase(out, CLOSED, near=(0.03, 0.2), speed=0.8),
    )


def offer_hammer(rng: np.random.Generator, meeting: np.ndarray) -> tuple[Phase, ...]:
    """Robot 0 holds the hammer out, its handle along y, until robot 1 has it; then it lets go and draws back."""
    place, askew = np.array([0.0, -0.05, 0.0]), rng.uniform(-0.05, 0.05)
    away = np.array([0.0, -0.12, 0.08]) + draw_offset(rng, (0.02, 0.03, 0.02))

    def out(state: State, start: Pose) -> Pose:
        return Pose(meeting + place, downward(nearest_turn(askew, yaw_of(start.rotation), np.pi)))

    return (
        Phase(out, CLOSED, near=(0.03, 0.15)),
        Phase(out, CLOSED, near=(0.1, 1.0), steps=5, patience=LONG, until=lambda state: holds_hammer(state, "robot1")),
        Phase(stay, OPEN, near=(0.1, 1.0), steps=int(rng.integers(5, 9))),
        Phase(lifted(away), OPEN, near=(0.02, 0.2)),
    )


def throw_trash(rng: np.random.Generator) -> tuple[Phase, ...]:
    """Robot 1 takes the trash out of the target bin and drops it into the trash bin."""
    above = draw_offset(rng, (0.015, 0.015, 0.02)) + 0.15 * UP
    grasp = draw_offset(rng, (0.003, 0.003, 0.004)) + 0.004 * UP
    drop = draw_offset(rng, (0.04, 0.04, 0.02)) + 0.2 * UP
    clear = rng.uniform(1.02, 1.06)

    def trash(state: State, start: Pose) -> Pose:
        cube = body_pose(state, "trash")
        return Pose(cube.position, downward(nearest_turn(yaw_of(cube.rotation), yaw_of(start.rotation), np.pi / 2.0)))

    def out(state: State, start: Pose) -> Pose:
        return Pose(np.append(start.position[:2], clear), start.rotation)

    def over_bin(state: State, start: Pose) -> Pose:
        return Pose(state["trash_bin_pos"] + drop, start.rotation)

    return (
        Phase(stay, OPEN, steps=int(rng.integers(1, 10))),
        Phase(shifted(trash, above), OPEN, near=(0.03, 0.2)),
        Phase(shifted(trash, grasp), OPEN, near=(0.008, 0.08), speed=0.8),
        Phase(stay, CLOSED, near=(0.1, 1.0), steps=int(rng.integers(8, 12))),
        Phase(out, CLOSED, near=(0.03, 0.2)),
        Phase(over_bin, CLOSED, near=(0.03, 0.3)),
        Phase(stay, OPEN, near=(0.1, 1.0), steps=int(rng.integers(6, 10))),
    )


def take_hammer(rng: np.random.Generator, meeting: np.ndarray) -> tuple[Phase, ...]:
    """Robot 1 waits until the hammer is held out, takes it by the free end of its handle and waits until it is let go."""
    ready = meeting + np.array([0.0, 0.22, 0.1]) + draw_offset(rng, (0.03, 0.03, 0.03))
    hold = Hold(rng.uniform(0.07, 0.082), rng.uniform(-0.04, 0.04), 0.0)
    above = draw_offset(rng, (0.01, 0.01, 0.02)) + 0.08 * UP

    def wait(state: State, start: Pose) -> Pose:
        return Pose(ready, downward(nearest_turn(0.0, yaw_of(start.rotation), np.pi)))

    return (
        Phase(wait, OPEN, near=(0.04, 0.3), patience=LONG, until=hammer_at(meeting)),
        Phase(shifted(hold, above), OPEN, near=(0.02, 0.15)),
        Phase(hold, OPEN, near=(0.008, 0.1), speed=0.5),
        Phase(stay, CLOSED, near=(0.03, 0.3), steps=10, patience=LONG, until=lambda state: not holds_hammer(state, "robot0")),
    )


def deliver_hammer(rng: np.random.Generator) -> tuple[Phase, ...]:
    """Robot 1 carries the hammer over the target bin, lowers it and lets go."""
    middle = draw_offset(rng, (0.02, 0.008, 0.01))
    raised = rng.uniform(0.02, 0.05) * UP
    depth = rng.uniform(0.015, 0.05)

    def over_bin(state: State, start: Pose) -> Pose:
        ahead = gripper_pose(state, "robot1").position - middle_of_hammer(state)
        goal = state["target_bin_pos"][:2] + ahead[:2] + middle[:2]
        height = max(gripper_pose(state, "robot1").position[2] - lowest_of_hammer(state), 0.03)
        return Pose(
            np.append(goal, RIM + 0.04 + height + middle[2]), downward(nearest_turn(0.0, yaw_of(start.rotation), np.pi))
        )

    def into_bin(state: State, start: Pose) -> Pose:
        goal = over_bin(state, start).position
        return Pose(goal - (RIM + 0.04 - FLOOR - depth) * UP, start.rotation)

    return (
        Phase(lifted(raised), CLOSED, near=(0.02, 0.3), speed=0.6),
        Phase(over_bin, CLOSED, near=(0.02, 0.15)),
        Phase(into_bin, CLOSED, near=(0.015, 0.2), patience=40),
        Phase(stay, OPEN, near=(0.1, 1.0), steps=int(rng.integers(6, 10))),
        Phase(lifted(0.15 * UP), OPEN, near=(0.02, 0.3)),
    )


class Hold:
    """A gripper from above around the handle of the hammer, `along` m from its middle towards +y, `askew` rad off the square.

    The palm leans by `lean` rad towards +y: robot 0, so close before its base, would come to the limits of its joints else.
    """

    def __init__(self, along: float, askew: float, lean: float) -> None:
        """Keep the place on the handle."""
        self.along, self.askew, self.lean = along, askew, lean

    def __call__(self, state: State, start: Pose) -> Pose:
        """The pose of the gripper for `state`, by the turn of the hand that is nearest to `start`."""
        hammer = body_pose(state, "payload")
        place = hammer.at((0.0, 0.0, self.along * sense_of_handle(hammer)))
        yaw = yaw_of_handle(hammer) - np.pi / 2.0 + self.askew
        upright = downward(nearest_turn(yaw, yaw_of(start.rotation), np.pi))
        return Pose(place + 0.002 * UP, about((np.cos(yaw), np.sin(yaw), 0.0), -self.lean) @ upright)


def sense_of_handle(hammer: Pose) -> float:
    """The sign of the direction of the hammer's own z axis, which runs along its handle to the head, along world y."""
    return 1.0 if hammer.rotation[1, 2] >= 0 else -1.0


def yaw_of_handle(hammer: Pose) -> float:
    """The direction of the handle in the horizontal plane, from the end with the lower y to the other, in rad from world x."""
    x, y = hammer.rotation[:2, 2] * sense_of_handle(hammer)
    return float(np.arctan2(y, x))


def middle_of_hammer(state: State) -> np.ndarray:
    """The point (3,) half way between the end of the handle and the top of the head."""
    return body_pose(state, "payload").at((0.0, 0.0, 0.017))


def lowest_of_hammer(state: State) -> float:
    """The height in m of the lower end of the hammer."""
    hammer = body_pose(state, "payload")
    return min(float(hammer.at((0.0, 0.0, end))[2]) for end in (-0.1, 0.13))


def holds_hammer(state: State, arm: str) -> bool:
    """Whether the fingers of `arm` are closed around the handle."""
    return bool(np.abs(state[f"{arm}_gripper_qpos"]).sum() < TAKEN)


def trash_is_away(state: State) -> bool:
    """Whether the trash lies lower than the rim, and nearer to the trash bin than to the target bin."""
    trash = state["trash_pos"]
    here, there = np.linalg.norm(trash - state["target_bin_pos"]), np.linalg.norm(trash - state["trash_bin_pos"])
    return bool(there < here and trash[2] < RIM)


def hammer_at(meeting: np.ndarray) -> Callable[[State], bool]:
    """Whether the hammer is held out at `meeting` (3,)."""
    return lambda state: bool(np.linalg.norm(state["payload_pos"] - meeting) < 0.06)
