"""Keys that a data set does not hold as such: slices of its arrays, keypoints of a rigid body."""

import numpy as np

from drifting_policy.types import DatasetError


def planar_keypoints(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World coordinates "n k 2" of body points "k 2" for poses "n 3" (x, y, counter-clockwise angle in radians)."""
    cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    return np.einsum("nij,kj->nki", rotation, points) + pose[:, None, :2]


def fit_body_points(pose: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Body points "k 2" that explain keypoints "n k 2" best: the mean of the keypoints seen from the body frame."""
    cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
    inverse = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
    result: np.ndarray = np.einsum("nij,nkj->nki", inverse, keypoints - pose[:, None, :2]).mean(0)
    return result


def select_key(values: np.ndarray, *, key: str, shape: tuple[int, ...], start: int | None) -> np.ndarray:
    """The array "n ..." as "n *shape": all its elements, or the flat elements from `start` on.

    Raises:
        DatasetError: where the elements do not suffice, begin before the first, or, without `start`, are too many.
    """
    flat = values.reshape(len(values), -1)
    size = int(np.prod(shape))
    first = 0 if start is None else start
    if first < 0 or first + size > flat.shape[1] or (start is None and size != flat.shape[1]):
        raise DatasetError(
            f"Key '{key}' needs elements {first}..{first + size - 1} per step; the data hold {values.shape[1:]}."
        )
    return flat[:, first : first + size].reshape(len(values), *shape)
