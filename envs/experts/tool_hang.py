"""The expert of robosuite's ToolHang: the frame into its stand, then the eye of the wrench over the hook.

Two styles: the hook of the frame comes to point to the right of the robot, or ahead; nothing tells which before it turns.
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
    Target,
    about,
    body_pose,
    downward,
    draw_offset,
    gripper_pose,
    lifted,
    shifted,
    stay,
)

STYLES: Final = ("right", "ahead")
HEADINGS: Final = (np.array([0.0, -1.0, 0.0]), np.array([1.0, 0.0, 0.0]))  # where the hook points, by style
UP: Final = np.array([0.0, 0.0, 1.0])
MOUNT: Final = np.array([0.0, 0.045, 0.005])  # m, the bottom of the hole in the axes of the base of the stand
DEPTH: Final = 0.15  # m, of that hole
TIP: Final = np.array([0.0, 0.0, -0.22075])  # m, the tip in the axes of the corner of the frame
GRIP: Final = np.array([0.0, 0.0, -0.03375])  # m, the middle of the grip, likewise
HOOK: Final = np.array([-0.0875, 0.0, 0.0])  # m, the foot of the hook that stands at the end of the horizontal bar, likewise
EYE: Final = np.array([-0.0935, 0.0, 0.0])  # m, the middle of the larger eye in the axes of the tool


def expert(rng: np.random.Generator, style: int) -> Expert:
    """Acts in one episode of ToolHang; `style` 0 mounts the frame with its hook to the right of the robot, 1 with it ahead."""
    return Expert(
        Motion(rng, (*fetch_frame(rng), *mount_frame(rng, HEADINGS[style]), *fetch_tool(rng), *hang_tool(rng, style)))
    )


def fetch_frame(rng: np.random.Generator) -> tuple[Phase, ...]:
    """Grasp the frame by its grip, the gripper leaning so that it looks towards the tip, and lift it."""
    slope = np.radians(rng.uniform(40.0, 48.0))
    place = GRIP + np.array([0.0, 0.0, rng.uniform(-0.004, 0.002)])
    raised = 0.09 * UP + draw_offset(rng, (0.02, 0.02, 0.02))

    def grasp(state: State, start: Pose) -> Pose:
        frame = body_pose(state, "frame")
        tip, across = -frame.rotation[:, 2], frame.rotation[:, 0]
        look = np.sin(slope) * tip - np.cos(slope) * UP
        close = across * (1.0 if np.cross(look, across) @ tip > 0 else -1.0)  # the gripper's y axis points to the tip
        rotation = np.stack([close, np.cross(look, close), look], axis=1)
        return Pose(frame.at(place) + 0.005 * UP, rotation)

    def back(state: State, start: Pose) -> Pose:
        pose = grasp(state, start)
        return Pose(pose.position - 0.09 * pose.rotation[:, 2], pose.rotation)

    return (
        Phase(back, OPEN, near=(0.02, 0.15)),
        Phase(grasp, OPEN, near=(0.005, 0.06), speed=0.7),
        Phase(stay, CLOSED, near=(0.1, 1.0), steps=int(rng.integers(8, 12))),
        Phase(lifted(raised), CLOSED, near=(0.04, 0.3), speed=0.8),
    )


def mount_frame(rng: np.random.Generator, heading: np.ndarray) -> tuple[Phase, ...]:
    """Turn the tip of the frame down, its hook towards `heading` (3,), bring it over the hole, lower it and let go."""
    middle = np.array([0.02, -0.05, 1.12]) + draw_offset(rng, (0.02, 0.02, 0.02))
    upright = np.stack([-heading, np.cross(UP, -heading), UP], axis=1)

    def turned(state: State, start: Pose) -> Pose:
        return Pose(middle, downward(np.arctan2(-heading[1], -heading[0])))

    def over(height: float) -> Target:
        def target(state: State, start: Pose) -> Pose:
            tip = hole(state) + height * UP
            return carried(state, "frame", Pose(tip - upright @ TIP, upright))

        return target

    def back(state: State, start: Pose) -> Pose:
        return Pose(start.position - 0.1 * start.rotation[:, 2], start.rotation)

    return (
        Phase(turned, CLOSED, near=(0.05, 0.3)),
        Phase(over(DEPTH + 0.06), CLOSED, near=(0.02, 0.1)),
        Phase(over(DEPTH + 0.02), CLOSED, near=(0.003, 0.03), speed=0.4),
        Phase(over(0.0), CLOSED, near=(0.01, 0.1), speed=0.4),
        Phase(stay, OPEN, near=(0.1, 1.0), steps=int(rng.integers(6, 10))),
        Phase(back, OPEN, near=(0.02, 0.2)),
    )


def fetch_tool(rng: np.random.Generator) -> tuple[Phase, ...]:
    """Grasp the tool by the middle of its grip, from above, and lift it."""
    place = np.array([rng.uniform(-0.01, 0.01), 0.0, 0.0])
    aside = np.array([0.03, -0.1, 1.18]) + draw_offset(rng, (0.02, 0.02, 0.02))

    def grasp(state: State, start: Pose) -> Pose:
        tool = body_pose(state, "tool")
        x, y = -tool.rotation[:2, 0]
        return Pose(tool.at(place) + 0.002 * UP, downward(np.arctan2(y, x) + np.pi / 2.0))

    def away(state: State, start: Pose) -> Pose:
        return Pose(aside, downward(np.radians(135.0)))

    return (
        Phase(away, OPEN, near=(0.06, 0.5)),
        Phase(shifted(grasp, 0.09 * UP), OPEN, near=(0.02, 0.15)),
        Phase(grasp, OPEN, near=(0.006, 0.06), speed=0.8),
        Phase(stay, CLOSED, near=(0.1, 1.0), steps=int(rng.integers(8, 12))),
        Phase(lifted((0.0, 0.0, 0.33)), CLOSED, near=(0.03, 0.3)),
    )


WAY: Final = (  # of the eye over the hook: inwards and up in m from the foot of the hook, and the lean of the tool in degrees
    (-0.002, 0.060, 20.0),
    (0.000, 0.020, 25.0),
    (0.000, 0.006, 28.0),
    (0.0015, 0.0015, 40.0),
    (0.0030, 0.0010, 47.0),
)
ENDS: Final = (  # of that way, by style: with the hook ahead, the arm would have to stretch out for a greater lean
    ((0.005, 0.0, 58.0), (0.012, 0.0, 65.0)),
    ((0.009, 0.0, 50.0),),
)


def hang_tool(rng: np.random.Generator, style: int) -> tuple[Phase, ...]:
    """Bring the eye over the hook, lower it, lean the tool over until the bar goes through the eye, and let go."""

    def at(inwards: float, up: float, lean: float) -> Target:
        def target(state: State, start: Pose) -> Pose:
            frame = body_pose(state, "frame")
            inner = frame.rotation[:, 0]
            eye = frame.at(HOOK) + inwards * inner + up * UP
            return carried(state, "tool", eye_pose(eye, inner, np.radians(lean)))

        return target

    def back(state: State, start: Pose) -> Pose:
        _, across, look = start.rotation.T
        return Pose(start.position - 0.07 * look, about(across, -0.5) @ start.rotation)

    high = (WAY[0][0], WAY[0][1] + 0.06, WAY[0][2])
    return (
        Phase(at(*high), CLOSED, near=(0.05, 0.3)),
        Phase(at(*WAY[0]), CLOSED, near=(0.01, 0.1)),
        Phase(at(*WAY[1]), CLOSED, near=(0.003, 0.06), speed=0.5),
        Phase(at(*WAY[2]), CLOSED, near=(0.003, 0.06), speed=0.5),
        *(Phase(at(*way), CLOSED, near=(0.003, 0.06), speed=0.5, turn=0.25, patience=50) for way in (*WAY[3:], *ENDS[style])),
        Phase(stay, OPEN, near=(0.1, 1.0), steps=int(rng.integers(6, 10))),
        Phase(back, OPEN, near=(0.02, 0.2)),
    )


def eye_pose(eye: np.ndarray, inner: np.ndarray, lean: float) -> Pose:
    """The pose of the tool with its eye at `eye` (3,), square to the bar along `inner` (3,), leaning by `lean` rad."""
    flat = np.array([inner[0], inner[1], 0.0]) / np.linalg.norm(inner[:2])
    along = np.cross(UP, flat)  # from the eye to the middle of the tool
    normal = np.cos(lean) * UP - np.sin(lean) * flat
    rotation = np.stack([along, np.cross(normal, along), normal], axis=1)
    return Pose(eye - rotation @ EYE, rotation)


def hole(state: State) -> np.ndarray:
    """The point (3,) at the bottom of the hole of the stand."""
    return body_pose(state, "base").at(MOUNT)


def carried(state: State, name: str, goal: Pose) -> Pose:
    """The pose of the gripper that brings the body `name`, which moves with it, to `goal`."""
    body, hand = body_pose(state, name), gripper_pose(state)
    turn = goal.rotation @ body.rotation.T
    return Pose(goal.position + turn @ (hand.position - body.position), turn @ hand.rotation)
