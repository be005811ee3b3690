"""Rotations as matrices, rotation vectors and six numbers, and the conversions between them. All of them "..." in front.

A matrix "... 3 3" turns column vectors. A rotation vector "... 3" has the axis as its direction and the angle in rad as its
length. The six numbers "... 6" are the first two rows of the matrix, which is continuous where vectors and quaternions jump
(Zhou et al. 2019, On the Continuity of Rotation Representations in Neural Networks; rows, as in the data of Diffusion Policy).
"""

import numpy as np

SMALLEST = 1e-6  # of a norm: what is shorter has no direction


def matrix_of_six(six: np.ndarray) -> np.ndarray:
    """The rotation whose first rows are closest in the sense of Gram and Schmidt: the first is kept but for its length.

    Raises:
        ValueError: the two rows are zero or parallel.
    """
    first, second = np.asarray(six, np.float64)[..., :3], np.asarray(six, np.float64)[..., 3:]
    length = np.linalg.norm(first, axis=-1, keepdims=True)
    one = first / np.maximum(length, SMALLEST)
    across = second - (one * second).sum(-1, keepdims=True) * one
    height = np.linalg.norm(across, axis=-1, keepdims=True)
    if (length < SMALLEST).any() or (height < SMALLEST).any():
        raise ValueError(
            f"Six numbers of a rotation must be two rows that are not parallel; got {np.asarray(six).tolist()}."
        )
    two = across / height
    return np.stack([one, two, np.cross(one, two)], axis=-2)


def six_of_matrix(matrix: np.ndarray) -> np.ndarray:
    """The first two rows of the rotations "... 3 3", as "... 6"."""
    rows = np.asarray(matrix, np.float64)[..., :2, :]
    return rows.reshape(*rows.shape[:-2], 6).copy()


def matrix_of_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """The rotations "... 3 3" of quaternions "... 4" x, y, z, w of any length but zero."""
    values = np.asarray(quaternion, np.float64)
    x, y, z, w = np.moveaxis(values / np.linalg.norm(values, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_of_matrix(matrix: np.ndarray) -> np.ndarray:
    """Unit quaternions "... 4" x, y, z, w with w >= 0 of the rotations "... 3 3".

    Each row of the symmetric matrix below is 4 q_i q, so the one with the largest diagonal element is q but for its length
    (Shepperd 1978, Quaternion from Rotation Matrix).
    """
    r = np.moveaxis(np.asarray(matrix, np.float64), (-2, -1), (0, 1))
    rows = [
        [1 + r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
        [r[0, 1] + r[1, 0], 1 - r[0, 0] + r[1, 1] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
        [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 1 - r[0, 0] - r[1, 1] + r[2, 2], r[1, 0] - r[0, 1]],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], 1 + r[0, 0] + r[1, 1] + r[2, 2]],
    ]
    outer = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    best = np.diagonal(outer, axis1=-2, axis2=-1).argmax(axis=-1)
    chosen = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    unit = chosen / np.linalg.norm(chosen, axis=-1, keepdims=True)
    return np.where(unit[..., 3:] < 0, -unit, unit)


def vector_of_matrix(matrix: np.ndarray) -> np.ndarray:
    """Rotation vectors "... 3", at most pi long, of the rotations "... 3 3"."""
    quaternion = quaternion_of_matrix(matrix)
    sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., 3:])
    # angle / sin(angle / 2) tends to 2 where the angle vanishes.
    factor = np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 2.0)
    return np.asarray(factor * quaternion[..., :3])


def matrix_of_vector(vector: np.ndarray) -> np.ndarray:
    """The rotations "... 3 3" of rotation vectors "... 3"."""
    values = np.asarray(vector, np.float64)
    angle = np.linalg.norm(values, axis=-1, keepdims=True)
    axis = np.sinc(angle / (2 * np.pi)) * values / 2  # sin(angle / 2) times the direction
    return matrix_of_quaternion(np.concatenate([axis, np.cos(angle / 2)], axis=-1))
