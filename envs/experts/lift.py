"""The expert of robosuite's Lift: over the cube, down along one side of it or the other, and up.

Two styles: the cube is grasped by one pair of its opposite faces or by the other. Which of the two is seen in no observation.
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
    nearest_turn,
    yaw_of,
)

STYLES: Final = ("left", "right")


def expert(rng: np.random.Generator, style: int) -> Expert:
    """Acts in one episode of Lift; `style` 0 turns the gripper to the left to meet the faces of the cube, 1 to the right."""
    return Expert(Motion(rng, plan(rng, style)))


def plan(rng: np.random.Generator, style: int) -> tuple[Phase, ...]:
    """The phases of one episode, with their random heights, offsets and dwells."""
    above = draw_offset(rng, (0.015, 0.015, 0.015), height=0.06)
    grasp = draw_offset(rng, (0.004, 0.004, 0.006))
    raised = draw_offset(rng, (0.02, 0.02, 0.02), height=0.12)
    tilt = rng.uniform(-0.06, 0.06)

    def over(state: State, start: Pose) -> Pose:
        return facing(state, style, tilt).moved(above)

    def down(state: State, start: Pose) -> Pose:
        return funnelled(facing(state, style, tilt).moved(grasp), gripper_pose(state))

    def up(state: State, start: Pose) -> Pose:
        return start.moved(raised)

    return (
        Phase(over, OPEN, near=(0.025, 0.25)),
        Phase(down, OPEN, near=(0.012, 0.12), speed=0.8),
        Phase(down, CLOSED, near=(0.03, 0.3), steps=int(rng.integers(6, 10))),
        Phase(up, CLOSED, speed=0.8),
    )


def facing(state: State, style: int, tilt: float) -> Pose:
    """The gripper at the cube, looking down, its fingers along the nearest faces in the sense of the style; `tilt` rad off."""
    cube = body_pose(state, "cube")
    across = np.pi / 2.0  # the fingers of a gripper at rest close along world y
    yaw = nearest_turn(yaw_of(cube.rotation), across, np.pi / 2.0)
    sense = (1.0, -1.0)[style]
    yaw += 0.0 if (yaw - across) * sense >= 0 else sense * np.pi / 2.0
    return Pose(cube.position, downward(yaw + tilt))
