"""The obstacle is where it seems to be: who passes it, on which side, who hits it, and what a restored state is."""

import itertools
import math

import gymnasium
import numpy as np
import pytest

from drifting_policy.envs.obstacle import HIT, LEFT, RADIUS, REACH, RIGHT, clearance, follow, initial_state, move, passage

STATE = [0.0, -0.85, 0.0, 0.85, 0.0, 0.0]  # agent, goal, obstacle
ORIGIN, GOAL = np.zeros(2), np.array([0.0, 0.85])


def make() -> gymnasium.Env:
    env = gymnasium.make("drifting_policy.envs:drifting/Obstacle-v0")
    return env.unwrapped


def path(*points: tuple[float, float]) -> np.ndarray:
    return np.array([(0.0, -0.85), *points, (0.0, 0.85)])


@pytest.mark.parametrize(
    ("points", "side"),
    [
        ([(-0.3, 0.0)], LEFT),
        ([(0.3, 0.0)], RIGHT),
        ([(-0.3, -0.3), (-0.3, 0.3)], LEFT),
        ([(0.0, 0.5)], HIT),  # straight through, though no point of the path lies in the disc
        ([(0.19, 0.0)], HIT),
        ([(-0.5, -0.01), (0.5, -0.01)], HIT),  # across, in front of the centre
        ([(-0.5, -0.3), (0.5, -0.3), (0.5, 0.0)], RIGHT),  # from one side to the other before it is level
        ([(0.3, 0.0), (0.4, 0.4), (-0.3, -0.0)], HIT),  # back through the disc
    ],
)
def test_a_path_passes_on_one_side_or_hits(points: list[tuple[float, float]], side: int) -> None:
    taken = path(*points)
    assert passage(taken, GOAL, ORIGIN) == side
    assert passage(taken * [-1, 1], GOAL, ORIGIN) == -side
    angle = 0.7  # the side is seen from the path, not from the world
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    assert passage(taken @ turn + 0.1, GOAL @ turn + 0.1, ORIGIN + 0.1) == side


def test_who_never_gets_level_has_not_passed() -> None:
    assert passage(np.array([(0.0, -0.85), (-0.4, -0.1)]), GOAL, ORIGIN) == HIT
    assert passage(np.array([(-0.4, -0.85), (-0.4, -0.1), (-0.4, 0.1)]), GOAL, ORIGIN) == LEFT


def test_clearance_equals_a_fine_sampling_of_the_path() -> None:
    rng = np.random.default_rng(0)
    paths, centres = rng.uniform(-1, 1, (40, 6, 2)), rng.uniform(-1, 1, (40, 2))
    shares = np.linspace(0, 1, 2001)[:, None]
    for taken, centre, found in zip(paths, centres, clearance(paths, centres), strict=True):
        points = np.concatenate([a + shares * (b - a) for a, b in itertools.pairwise(taken)])
        assert found == pytest.approx(np.linalg.norm(points - centre, axis=1).min(), abs=1e-5)
    assert clearance(np.zeros((2, 2)), np.array([0.3, 0.4])) == pytest.approx(0.5)  # a segment without length


def test_batches_of_paths_equal_single_ones() -> None:
    rng = np.random.default_rng(0)
    states = np.stack([initial_state(rng) for _ in range(5)])
    chunks = rng.uniform(-1, 1, (5, 7, 16, 2)).astype(np.float32)
    paths = follow(states[:, None, :2], chunks)
    classes = passage(paths, states[:, None, 2:4], states[:, None, 4:])
    assert classes.shape == (5, 7)
    for i, state in enumerate(states):
        for j in range(7):
            alone = follow(state[:2], chunks[i, j])
            np.testing.assert_array_equal(alone, paths[i, j])
            assert passage(alone, state[2:4], state[4:]) == classes[i, j]


def test_a_step_reaches_so_far_and_stays_in_the_world() -> None:
    np.testing.assert_allclose(move(np.zeros(2), np.array([0.05, -0.1])), [0.05, -0.1])
    np.testing.assert_allclose(move(np.zeros(2), np.array([0.6, 0.8])), [0.6 * REACH, 0.8 * REACH])
    np.testing.assert_array_equal(move(np.array([0.95, 0.0]), np.array([5.0, 0.0])), [1.0, 0.0])
    np.testing.assert_array_equal(move(np.ones(2), np.ones(2)), np.ones(2))


@pytest.mark.parametrize(("way", "side"), [(-0.4, LEFT), (0.4, RIGHT)])
def test_an_episode_is_what_follow_and_passage_say(way: float, side: int) -> None:
    env, targets = make(), np.linspace([way, -0.6], [way, 0.6], 10)
    targets = np.concatenate([targets, np.linspace([way, 0.7], [0.0, 0.85], 6)]).astype(np.float32)
    observation, info = env.reset(seed=0, options={"state": STATE})
    assert info == {"success": False, "hit": False, "side": HIT}
    seen, rewards = [observation["agent_pos"]], []
    for target in targets:
        observation, reward, terminated, truncated, info = env.step(target)
        seen.append(observation["agent_pos"])
        rewards.append(reward)
        if terminated:
            break
    np.testing.assert_array_equal(np.stack(seen), follow(np.array(STATE[:2]), targets)[: len(seen)].astype(np.float32))
    assert info == {"success": True, "hit": False, "side": side}
    assert (terminated, truncated, rewards[-1], sum(rewards)) == (True, False, 1.0, 1.0)


def test_a_touch_ends_the_episode_without_reward() -> None:
    env = make()
    env.reset(seed=0, options={"state": STATE})
    for _ in range(20):
        observation, reward, terminated, _, info = env.step(np.array([0.0, 0.85]))
        if terminated:
            break
    assert info == {"success": False, "hit": True, "side": HIT}
    assert reward == 0.0
    assert -REACH - RADIUS <= observation["agent_pos"][1] < 0


def test_initial_states_are_solvable_and_all_different() -> None:
    states = np.stack([make().reset(seed=seed)[0]["state"] for seed in range(200)])
    assert len(np.unique(states, axis=0)) == 200
    assert np.linalg.norm(states[:, 4:] - states[:, :2], axis=1).min() > RADIUS + REACH
    assert np.linalg.norm(states[:, 4:] - states[:, 2:4], axis=1).min() > RADIUS + REACH
    straight = passage(np.stack([states[:, :2], states[:, 2:4]], axis=1), states[:, 2:4], states[:, 4:])
    assert (straight == HIT).all()  # the straight way is never free


@pytest.mark.parametrize("state", [STATE, [0.3, -0.2, -0.1, 0.9, 0.0, 0.1]])
def test_a_state_is_restored_exactly(state: list[float]) -> None:
    env = make()
    env.reset(seed=0)
    env.step(np.array([0.5, 0.5]))
    observation, _ = env.reset(options={"state": state})
    np.testing.assert_array_equal(observation["state"], np.array(state, np.float32))
    np.testing.assert_array_equal(
        np.concatenate([observation[key] for key in ("agent_pos", "goal", "obstacle")]), observation["state"]
    )


@pytest.mark.parametrize("state", [[1, 2, 3], [0, 0, 0, 0, 0, math.nan]])
def test_bad_states_are_refused(state: list[float]) -> None:
    with pytest.raises(ValueError, match=r"options\['state'\] must be 6 finite numbers"):
        make().reset(seed=0, options={"state": state})
