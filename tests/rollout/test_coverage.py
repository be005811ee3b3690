"""Coverage says what hand-made samples are, and draws are pure functions of the seed."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drifting_policy.rollout.coverage import LEAST, MOST_ASTRAY, covered, draw, shares
from drifting_policy.types import ArraySpec, PolicySpec, UserError


def row(*, left: int, right: int, astray: int) -> list[int]:
    return [1] * left + [-1] * right + [0] * astray


@pytest.mark.parametrize(
    ("left", "right", "astray", "both"),
    [
        (50, 50, 0, True),
        (10, 90, 0, True),  # exactly the least
        (9, 91, 0, False),
        (0, 100, 0, False),
        (0, 0, 100, False),
        (10, 70, 20, True),  # exactly the most
        (40, 39, 21, False),
    ],
)
def test_hand_made_samples(left: int, right: int, astray: int, both: bool) -> None:
    assert (LEAST, MOST_ASTRAY) == (0.1, 0.2)
    classes = np.array([row(left=left, right=right, astray=astray), row(left=50, right=50, astray=0)])
    assert covered(classes, (1, -1)).tolist() == [both, True]
    np.testing.assert_allclose(shares(classes, (1, -1)), [[left / 100, right / 100], [0.5, 0.5]])


@given(classes=arrays(np.int64, (3, 20), elements=st.integers(-1, 2)), least=st.floats(0, 0.5), most=st.floats(0, 1))
def test_coverage_equals_a_loop(classes: np.ndarray, least: float, most: float) -> None:
    for samples, both in zip(classes.tolist(), covered(classes, (1, -1), least=least, most_astray=most), strict=True):
        left, right = samples.count(1), samples.count(-1)
        enough = left / 20 >= least and right / 20 >= least
        assert both == (enough and (20 - left - right) / 20 <= most + 1e-9)


def test_neither_order_of_samples_nor_of_modes_matters() -> None:
    classes = np.random.default_rng(0).integers(-1, 2, (50, 30))
    expected = covered(classes, (1, -1), most_astray=0.4)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(covered(classes[:, ::-1], (-1, 1), most_astray=0.4), expected)


@pytest.mark.parametrize(("classes", "modes"), [(np.zeros((0, 3)), (1,)), (np.zeros(3), (1,)), (np.zeros((2, 3)), ())])
def test_nothing_to_judge_is_told(classes: np.ndarray, modes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="Coverage needs classes"):
        covered(classes, modes)


class Echo:
    """A policy whose chunk is its observation plus the noise."""

    max_prefix = 0
    spec = PolicySpec({"x": ArraySpec((1,))}, ArraySpec((2,)), obs_horizon=1, pred_horizon=3, exec_horizon=1, control_hz=1.0)

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        assert noise is not None
        return obs["x"] + noise


def test_samples_are_drawn_from_unit_noise_of_the_seed_alone() -> None:
    obs = {"x": np.array([[[0.0]], [[100.0]]])}
    chunks = draw(Echo(), obs, samples=500, seed=0)
    assert chunks.shape == (2, 500, 3, 2)
    np.testing.assert_allclose(chunks.mean(axis=(1, 2, 3)), [0, 100], atol=0.1)
    assert chunks.std(axis=1) == pytest.approx(1.0, abs=0.15)
    np.testing.assert_array_equal(chunks, draw(Echo(), obs, samples=500, seed=0))
    assert (chunks != draw(Echo(), obs, samples=500, seed=1)).any()
    assert (np.diff(chunks, axis=1) != 0).all()
