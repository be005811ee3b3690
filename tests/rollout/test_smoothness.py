"""Accelerations and jerks in closed form, and which of them span two chunks."""

import numpy as np
import pytest
from worlds import Noisy, Walk

from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.smoothness import Motion, differences, smoothness, spanning, switches
from drifting_policy.seams import Execution
from drifting_policy.types import ArraySpec, PolicySpec

SPEC = PolicySpec({"x": ArraySpec((1,))}, ArraySpec((2,)), 2, 8, 3, 10.0)


def test_differences_of_polynomials_are_known() -> None:
    time = np.arange(9) / 10.0
    commands = np.stack([3 * time**2, 4 * time**2], axis=1)
    np.testing.assert_allclose(differences(commands, order=2, control_hz=10.0), 10.0)  # |(6, 8)|
    np.testing.assert_allclose(differences(commands, order=3, control_hz=10.0), 0, atol=1e-9)
    np.testing.assert_allclose(differences(np.stack([time**3, 0 * time], axis=1), order=3, control_hz=10.0), 6.0)


def test_plans_switch_where_the_commands_of_another_begin() -> None:
    for latency in range(4):
        made = [max(plan for plan in range(0, step + 1, 3) if plan == 0 or plan + latency <= step) for step in range(20)]
        expected = [step for step in range(1, 20) if made[step] != made[step - 1]]
        assert switches(SPEC, committed=latency, steps=20).tolist() == expected


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("places", [[], [3], [1, 2, 7], [9]])
def test_a_difference_spans_a_switch_that_lies_between_its_commands(order: int, places: list[int]) -> None:
    plan = np.searchsorted(places, np.arange(10), side="right")
    expected = [len(set(plan[i : i + order + 1])) > 1 for i in range(10 - order)]
    assert spanning(np.array(places, int), steps=10, order=order).tolist() == expected


def test_a_jump_between_straight_chunks_is_found_at_the_boundary_alone() -> None:
    line = np.arange(12.0)[:, None] * [1.0, 0.0]
    line[6:, 1] += 2.0
    found = smoothness(line, np.array([6]), control_hz=10.0)
    assert (found.boundary.max_acceleration, found.boundary.mean_acceleration) == pytest.approx((200.0, 200.0))
    assert (found.boundary.max_jerk, found.boundary.mean_jerk) == pytest.approx((4000.0, 8000.0 / 3))
    assert found.inside == Motion(0.0, 0.0, 0.0, 0.0)
    assert smoothness(line, np.array([], int), control_hz=10.0).boundary == Motion(None, None, None, None)
    assert smoothness(line[:2], np.array([1]), control_hz=10.0).inside.max_acceleration is None


def test_episodes_tell_how_rough_their_boundaries_were() -> None:
    options = {"max_steps": 8, "keep_trajectories": True, "num_envs": 3}
    execution = Execution("fade", exec_horizon=3, held_noise=True)
    for workers in (0, 2):
        result = evaluate(Noisy(), Walk, range(4), latency_steps=1, execution=execution, workers=workers, **options)
        for episode in result.episodes:
            commands = result.trajectories[episode.seed]["action"]
            boundary = smoothness(commands, np.arange(4, episode.steps, 3), control_hz=10.0).boundary
            assert (episode.boundary_acceleration, episode.boundary_jerk) == (boundary.max_acceleration, boundary.max_jerk)
            assert (episode.boundary_jerk is None) == (episode.steps <= 4)
