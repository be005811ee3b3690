"""Points of the mixture lie in its clusters, and an episode is one draw."""

import gymnasium
import numpy as np
import pytest

from drifting_policy.envs.mixture import CLUSTERS, DEVIATION, NEAR, centres, cluster_of, draw_points


def test_draws_follow_the_mixture() -> None:
    points = draw_points(20_000, np.random.default_rng(0))
    nearest = np.linalg.norm(points[:, None] - centres(), axis=-1).argmin(axis=1)
    counts = np.bincount(nearest, minlength=CLUSTERS)
    assert abs(counts / counts.sum() - 1 / CLUSTERS).max() < 0.01
    assert (points - centres()[nearest]).std() == pytest.approx(DEVIATION, rel=0.03)
    assert (cluster_of(points) < 0).mean() == pytest.approx(np.exp(-4.5), abs=0.003)  # beyond three deviations in the plane


@pytest.mark.parametrize(
    ("point", "cluster"),
    [(centres()[3], 3), (centres()[5] + [0.99 * NEAR, 0], 5), (centres()[5] + [1.01 * NEAR, 0], -1), ([0, 0], -1)],
)
def test_an_episode_is_one_draw(point: list[float], cluster: int) -> None:
    env = gymnasium.make("drifting_policy.envs:drifting/Mixture-v0").unwrapped
    observation, info = env.reset(seed=0)
    assert (observation["nothing"].tolist(), info) == ([0.0], {"success": False, "cluster": -1})
    observation, reward, terminated, truncated, info = env.step(np.array(point))
    assert info == {"success": cluster >= 0, "cluster": cluster}
    assert (observation["nothing"].tolist(), reward, terminated, truncated) == ([0.0], float(cluster >= 0), True, False)
