"""The expert of robosuite's PickPlaceCan: down onto the can, over the walls of the bins, and let go above the target bin.

Two styles: the wrist turns to the left and the can travels on the robot's side, or the wrist turns to the right and the can
travels on the far side. The can is round and the way is free, so no observation before the first motion tells which.
"""

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
    body_pose,
    downward,
    draw_offset,
    funnelled,
    gripper_pose,
    shortened,
)

STYLES: Final = ("near", "far")
GOAL: Final = np.array([0.16, 0.35])  # in the corner of the can's bin that the arm reaches well, m
FLOOR: Final = 0.86  # height at which the centre of a standing can rests, m
WALL: Final = 0.9  # top of the walls of the bins, m


def expert(rng: np.random.Generator, style: int) -> Expert:
    """Acts in one episode of PickPlaceCan; `style` 0 carries the can along the robot's side, 1 along the far side."""
    return Expert(Motion(rng, plan(rng, style)))


def plan(rng: np.random.Generator, style: int) -> tuple[Phase, ...]:
    """The phases of one episode, with their random heights, offsets and dwells."""
    sense = (1.0, -1.0)[style]
    yaw = np.pi / 2.0 + sense * rng.uniform(0.35, 0.75)
    above = draw_offset(rng, (0.01, 0.01, 0.02), height=0.12)
    grasp = draw_offset(rng, (0.006, 0.006, 0.008), height=0.02)
    raised = draw_offset(rng, (0.02, 0.02, 0.02), height=0.12)
    bow = np.array([-sense * rng.uniform(0.04, 0.09), rng.uniform(-0.04, 0.04)])
    goal = GOAL + rng.uniform(-0.02, 0.02, 2)
    travel = WALL + rng.uniform(0.09, 0.12)
    drop = FLOOR + rng.uniform(0.02, 0.05)

    def over(state: State, start: Pose) -> Pose:
        return Pose(state["Can_pos"] + above, downward(yaw))

    def down(state: State, start: Pose) -> Pose:
        return funnelled(Pose(state["Can_pos"] + grasp, downward(yaw)), gripper_pose(state))

    def up(state: State, start: Pose) -> Pose:
        return start.moved(raised)

    def midway(state: State, start: Pose) -> Pose:
        return carrying(state, np.append((start.position[:2] + goal) / 2.0 + bow, travel), start.rotation)

    def above_goal(state: State, start: Pose) -> Pose:
        return carrying(state, np.append(goal, travel), start.rotation)

    def lowered(state: State, start: Pose) -> Pose:
        return carrying(state, np.append(goal, drop), start.rotation)

    def away(state: State, start: Pose) -> Pose:
        return start.moved((0.0, 0.0, 0.12))

    return (
        Phase(over, OPEN, near=(0.02, 0.2)),
        Phase(down, OPEN, near=(0.012, 0.15), speed=0.8),
        Phase(down, CLOSED, near=(0.04, 0.3), steps=int(rng.integers(6, 11))),
        Phase(up, CLOSED, near=(0.06, 0.5)),
        Phase(midway, CLOSED, near=(0.1, 0.5)),
        Phase(above_goal, CLOSED, near=(0.05, 0.5)),
        Phase(lowered, CLOSED, near=(0.02, 0.5), speed=0.8),
        Phase(lowered, OPEN, near=(0.05, 0.5), steps=int(rng.integers(3, 6))),
        Phase(away, OPEN, near=(0.02, 0.5)),
    )


def carrying(state: State, position: np.ndarray, rotation: np.ndarray) -> Pose:
    """The pose of the gripper that brings the can it holds to `position`, without turning it."""
    held = shortened(gripper_pose(state).position - body_pose(state, "Can").position, 0.04)
    return Pose(position + held, rotation)
