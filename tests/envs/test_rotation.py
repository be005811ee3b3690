"""Conversions of rotations: round trips, the textbook formulas, and limits where they break down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drifting_policy.envs.rotation import (
    matrix_of_quaternion,
    matrix_of_six,
    matrix_of_vector,
    quaternion_of_matrix,
    six_of_matrix,
    vector_of_matrix,
)

NUMBERS = st.floats(-3, 3, allow_nan=False, width=64)
VECTORS = arrays(np.float64, (3,), elements=NUMBERS)


def rodrigues(vector: np.ndarray) -> np.ndarray:
    """The matrix exponential of the cross product, term by term."""
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    term = total = np.eye(3)
    for n in range(1, 60):
        term = term @ cross / n
        total = total + term
    return total


@given(VECTORS)
def test_a_vector_is_the_exponential_of_its_cross_product(vector: np.ndarray) -> None:
    np.testing.assert_allclose(matrix_of_vector(vector), rodrigues(vector), atol=1e-12)


@given(VECTORS)
def test_every_form_leads_back_to_the_same_matrix(vector: np.ndarray) -> None:
    matrix = matrix_of_vector(vector)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix_of_six(six_of_matrix(matrix)), matrix, atol=1e-12)
    np.testing.assert_allclose(matrix_of_quaternion(quaternion_of_matrix(matrix)), matrix, atol=1e-12)
    np.testing.assert_allclose(matrix_of_vector(vector_of_matrix(matrix)), matrix, atol=1e-9)
    assert np.linalg.norm(vector_of_matrix(matrix)) <= np.pi + 1e-12


@given(VECTORS.filter(lambda v: 1e-6 < np.linalg.norm(v) < np.pi - 1e-3))
def test_short_vectors_come_back_themselves(vector: np.ndarray) -> None:
    np.testing.assert_allclose(vector_of_matrix(matrix_of_vector(vector)), vector, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-5, np.pi - 1e-8, np.pi])
@pytest.mark.parametrize("axis", [[1, 0, 0], [0, -1, 0], [0, 0, 1], [0.6, 0.0, -0.8]])
def test_the_ends_of_the_range_are_exact(axis: list[float], angle: float) -> None:
    found = vector_of_matrix(rodrigues(angle * np.array(axis)))
    np.testing.assert_allclose(np.linalg.norm(found), angle, atol=1e-7)
    np.testing.assert_allclose(rodrigues(found), rodrigues(angle * np.array(axis)), atol=1e-7)


@given(arrays(np.float64, (6,), elements=NUMBERS))
def test_six_numbers_give_a_rotation(six: np.ndarray) -> None:
    if np.linalg.norm(np.cross(six[:3], six[3:])) < 1e-5 * max(1, np.linalg.norm(six[:3])):
        return  # parallel or nearly so
    matrix = matrix_of_six(six)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1)
    assert matrix[0] @ six[:3] == pytest.approx(np.linalg.norm(six[:3]))
    assert matrix[1] @ six[3:] >= 0
    assert matrix[2] @ six[3:] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("six", [[0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [1, 2, 3, -2, -4, -6]])
def test_what_has_no_direction_is_refused(six: list[float]) -> None:
    with pytest.raises(ValueError, match="rows that are not parallel"):
        matrix_of_six(np.array([[1, 0, 0, 0, 1, 0], six], np.float64))


def test_leading_axes_are_kept_and_rows_are_taken() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 5, 3))
    matrices = matrix_of_vector(vectors)
    assert matrices.shape == (4, 5, 3, 3)
    np.testing.assert_allclose(six_of_matrix(matrices)[2, 3], matrices[2, 3, :2].ravel())
    for form in (six_of_matrix, quaternion_of_matrix, vector_of_matrix):
        np.testing.assert_allclose(form(matrices)[1, 4], form(matrices[1, 4]))
    quarter = matrix_of_vector(np.array([0, 0, np.pi / 2]))
    np.testing.assert_allclose(quarter @ [1, 0, 0], [0, 1, 0], atol=1e-15)  # counter-clockwise
    np.testing.assert_allclose(quaternion_of_matrix(quarter), [0, 0, np.sqrt(0.5), np.sqrt(0.5)])  # x y z w
