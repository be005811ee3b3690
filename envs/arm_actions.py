"""Actions of arms as policies, files and controllers have them: goals with six numbers or a vector for a rotation, and deltas.

Per arm, one after the other: an absolute action has 10 numbers, the goal of the grip site in the world as position (m), first
two rows of the rotation and gripper (-1 opens, 1 closes); a controller takes the same with a rotation vector, 7 numbers; a
delta has 7 numbers in [-1, 1]: translation, rotation vector and gripper.
"""

import numpy as np

from drifting_policy.envs.rotation import matrix_of_six, vector_of_matrix

DELTA, ABSOLUTE = 7, 10
FARTHEST = 2.0  # m: the worlds are smaller
# The grip site of a Franka hand, seen from the hand, whose quaternion is `robot0_eef_quat`.
SITE = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def controller_action(action: np.ndarray) -> np.ndarray:
    """The absolute action "10 a" as controllers take it, "7 a", with positions clipped to 2 m and grippers to [-1, 1].

    Raises:
        ValueError: six numbers are no rotation.
    """
    parts = action.reshape(-1, ABSOLUTE)
    vectors = vector_of_matrix(matrix_of_six(parts[:, 3:9]))
    return np.concatenate([parts[:, :3].clip(-FARTHEST, FARTHEST), vectors, parts[:, 9:].clip(-1, 1)], axis=1).reshape(-1)


def delta_action(action: np.ndarray, *, positions: np.ndarray, rotations: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """The delta "7 a" that heads for the goals of the absolute action "10 a", as far as a delta reaches.

    Args:
        action: the goals.
        positions: of the grip sites in the world, "a 3".
        rotations: likewise, "a 3 3".
        scale: what a delta of 1 moves (m) and turns (rad).

    Raises:
        ValueError: six numbers are no rotation.
    """
    parts = action.reshape(-1, ABSOLUTE)
    turn = matrix_of_six(parts[:, 3:9]) @ np.swapaxes(rotations, -1, -2)
    ways = [(parts[:, :3] - positions) / scale[0], vector_of_matrix(turn) / scale[1], parts[:, 9:]]
    return np.concatenate([_shortened(way) for way in ways], axis=1).reshape(-1)


def _shortened(ways: np.ndarray) -> np.ndarray:
    """Vectors "a k" whose largest element is at most 1, in their own direction."""
    return ways / np.maximum(np.abs(ways).max(axis=1, keepdims=True), 1.0)
