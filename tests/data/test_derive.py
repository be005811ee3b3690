"""Keypoints against complex numbers, their fit as the inverse, and slices of arrays."""

import cmath

import numpy as np
import pytest

from drifting_policy.data.derive import fit_body_points, planar_keypoints, select_key
from drifting_policy.types import DatasetError

RNG = np.random.default_rng(0)
POSES = RNG.normal(size=(20, 3)) * [300, 300, 4]
POINTS = RNG.normal(size=(5, 2)) * 50


def test_keypoints_equal_complex_rotations() -> None:
    keypoints = planar_keypoints(POSES, POINTS)
    assert keypoints.shape == (20, 5, 2)
    for (x, y, angle), row in zip(POSES, keypoints, strict=True):
        for (u, v), (a, b) in zip(POINTS, row, strict=True):
            assert abs(complex(a, b) - (complex(x, y) + complex(u, v) * cmath.exp(1j * angle))) < 1e-9
    np.testing.assert_allclose(planar_keypoints(np.array([[1, 2, np.pi / 2]]), np.array([[3, 0]])), [[[1, 5]]])


def test_the_fit_is_the_inverse_and_averages_noise() -> None:
    keypoints = planar_keypoints(POSES, POINTS)
    np.testing.assert_allclose(fit_body_points(POSES, keypoints), POINTS, atol=1e-9)
    shift = RNG.normal(size=keypoints.shape)
    bent = fit_body_points(POSES, keypoints + shift)
    assert 0.01 < np.abs(bent - POINTS).max() < 1.5
    for step in (1e-3, -1e-3):  # no other points explain the keypoints better
        worse = planar_keypoints(POSES, bent + step) - keypoints - shift
        assert (worse**2).sum() > ((planar_keypoints(POSES, bent) - keypoints - shift) ** 2).sum()


@pytest.mark.parametrize(
    ("shape", "start", "expected"),
    [
        ((6,), None, [0, 1, 2, 3, 4, 5]),
        ((3, 2), None, [[0, 1], [2, 3], [4, 5]]),
        ((2,), 0, [0, 1]),
        ((2, 2), 2, [[2, 3], [4, 5]]),
        ((), 5, 5),
    ],
)
def test_keys_are_selected_from_flat_elements(shape: tuple[int, ...], start: int | None, expected: object) -> None:
    values = np.arange(24).reshape(4, 2, 3)
    selected = select_key(values, key="x", shape=shape, start=start)
    assert selected.shape == (4, *shape)
    np.testing.assert_array_equal(selected, np.asarray(expected) + 6 * np.arange(4).reshape(4, *[1] * len(shape)))


@pytest.mark.parametrize(
    ("shape", "start", "words"),
    [
        ((5,), None, r"'x' needs elements 0..4 per step; the data hold \(2, 3\)"),
        ((7,), None, "elements 0..6"),
        ((2,), 5, "elements 5..6"),
        ((7,), 0, "elements 0..6"),
        ((1,), -1, "elements -1..-1"),
        ((2,), -1, "elements -1..0"),
    ],
)
def test_keys_that_the_data_do_not_hold_are_refused(shape: tuple[int, ...], start: int | None, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        select_key(np.zeros((4, 2, 3)), key="x", shape=shape, start=start)
