"""The expert of robosuite's NutAssemblySquare: the nut by its handle, over the square peg, turned to fit, and let go.

Two styles: between the grasp and the peg the nut turns to the left, or to the right, until its hole fits the peg. The peg looks
the same after a quarter turn, so no observation tells which.
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
    about,
    body_pose,
    downward,
    draw_offset,
    funnelled,
    gripper_pose,
    nearest_turn,
    yaw_of,
)

STYLES: Final = ("left", "right")
PEG: Final = np.array([0.23, 0.1])  # its centre, m
TOP: Final = 0.95  # of the peg, m
SLACK: Final = 0.008  # between the centres of nut and peg while the nut goes down, m
HANDLE: Final = 0.054  # from the centre of the nut to that of its handle, m
ACROSS: Final = np.pi / 2.0  # the fingers of a gripper at rest close along world y
QUARTER: Final = np.pi / 2.0


def expert(rng: np.random.Generator, style: int) -> Expert:
    """Acts in one episode of NutAssemblySquare; `style` 0 turns the nut to the left to fit the peg, 1 to the right."""
    return Expert(Motion(rng, plan(rng, style)))


def plan(rng: np.random.Generator, style: int) -> tuple[Phase, ...]:
    """The phases of one episode, with their random heights, offsets and dwells."""
    along = HANDLE + rng.uniform(0.0, 0.012)
    above = draw_offset(rng, (0.02, 0.02, 0.02), height=0.1)
    grasp = draw_offset(rng, (0.0, 0.0, 0.004))
    raised = draw_offset(rng, (0.02, 0.02, 0.02), height=0.13)
    clear = TOP + rng.uniform(0.04, 0.07)
    aside = draw_offset(rng, (0.02, 0.02, 0.0))

    def over(state: State, start: Pose) -> Pose:
        return at_handle(state, along).moved(above)

    def down(state: State, start: Pose) -> Pose:
        return funnelled(at_handle(state, along).moved(grasp), gripper_pose(state))

    def up(state: State, start: Pose) -> Pose:
        return start.moved(raised)

    def near_peg(state: State, start: Pose) -> Pose:
        return carrying(state, Pose(np.append(PEG, clear) + aside, flat(turned_on(state, start, style))))

    def above_peg(state: State, start: Pose) -> Pose:
        return carrying(state, Pose(np.append(PEG, clear), flat(nut_yaw(state))))

    def around_peg(state: State, start: Pose) -> Pose:
        return carrying(state, Pose(np.append(PEG, lowest(state)), flat(nut_yaw(state))))

    def away(state: State, start: Pose) -> Pose:
        return start.moved((0.0, 0.0, 0.06))

    return (
        Phase(over, OPEN, near=(0.03, 0.3)),
        Phase(down, OPEN, near=(0.01, 0.1), speed=0.8),
        Phase(down, CLOSED, near=(0.03, 0.3), steps=int(rng.integers(6, 11))),
        Phase(up, CLOSED, near=(0.03, 0.5)),
        Phase(near_peg, CLOSED, near=(0.05, 0.3), turn=0.8),
        Phase(above_peg, CLOSED, near=(0.006, 0.08), calm=0.25),
        Phase(around_peg, CLOSED, near=(0.015, 0.2), speed=0.6, until=is_around),
        Phase(away, OPEN, near=(0.02, 0.5), steps=10),
    )


def at_handle(state: State, along: float) -> Pose:
    """The gripper at the handle, `along` m from the centre of the nut, looking down, its fingers across the handle."""
    nut = body_pose(state, "SquareNut")
    yaw = nearest_turn(yaw_of(nut.rotation) + QUARTER, ACROSS, np.pi)
    return Pose(nut.at((along, 0.0, 0.0)), downward(yaw))


def turned_on(state: State, start: Pose, style: int) -> float:
    """The yaw in rad of the nut once the gripper, which began in `start`, has turned on to a quarter in the sense of the style.

    The arm does not reach a handle that points away from it behind the peg: a nut held like that turns on to the next quarter.
    """
    quarters = np.clip((yaw_of(start.rotation) - ACROSS) / QUARTER, -1.0, 1.0)
    offset = nut_yaw(state) - (yaw_of(gripper_pose(state).rotation) - ACROSS)  # 0 or half a turn, while the nut is held
    goals = [-1.0, 1.0] if np.cos(offset) > 0 else [-1.0, 0.0, 1.0]
    goal = (min(q for q in goals if q >= quarters), max(q for q in goals if q <= quarters))[style]
    return offset + goal * QUARTER


def lowest(state: State) -> float:
    """How far down, in m, the nut may go: around the peg, if it is centred on it, else not further than it is."""
    nut = state["SquareNut_pos"]
    return TOP - 0.05 if nut[2] < TOP or np.linalg.norm(nut[:2] - PEG) < SLACK else float(nut[2])


def is_around(state: State) -> bool:
    """Whether the nut is down around the peg so far that it falls when it is let go."""
    return bool(state["SquareNut_pos"][2] < TOP - 0.03)


def nut_yaw(state: State) -> float:
    """The direction in rad in which the handle points from the centre of the nut."""
    return yaw_of(body_pose(state, "SquareNut").rotation)


def flat(yaw: float) -> np.ndarray:
    """The rotation of a level nut that fits the peg, turned by the multiple of a quarter next to `yaw` rad."""
    return about((0.0, 0.0, 1.0), QUARTER * np.round(yaw / QUARTER))


def carrying(state: State, goal: Pose) -> Pose:
    """The pose of the gripper that brings the nut, held as it is held now, to `goal`."""
    nut, gripper = body_pose(state, "SquareNut"), gripper_pose(state)
    turn = goal.rotation @ nut.rotation.T
    return Pose(goal.position + turn @ (gripper.position - nut.position), turn @ gripper.rotation)
