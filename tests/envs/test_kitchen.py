"""The kitchen is the original's, counts what was done, restores recorded states and replays human demonstrations."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from drifting_policy.data.replay_buffer import open_replay
from drifting_policy.envs.kitchen import COMPLETE, TASKS, KitchenEnv, kitchen_env, positions_of, speeds_of

GOALS = kitchen_env.OBS_ELEMENT_GOALS


def zero(count: int = 1) -> np.ndarray:
    return np.zeros((count, 9), np.float32)


@pytest.fixture
def demonstrations(shared: Path) -> Any:
    return open_replay(shared / "data" / "kitchen" / "kitchen_complete_v2_minari_lowdim.zarr.zip")


def test_a_state_is_split_into_positions_and_speeds() -> None:
    state = np.arange(2 * 59).reshape(2, 59)
    np.testing.assert_array_equal(positions_of(state)[0], [*range(9), *range(18, 39)])
    np.testing.assert_array_equal(speeds_of(state)[0], [*range(9, 18), *range(39, 59)])
    assert sorted([*positions_of(state)[1], *speeds_of(state)[1]]) == list(range(59, 118))


def test_it_is_the_original_noise_included() -> None:
    env, original = KitchenEnv(), kitchen_env.KitchenEnv(tasks_to_complete=list(COMPLETE))
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 9)).astype(np.float32)
    for seed in (3, 4):
        seen = [env.reset(seed=seed)[0]["state"], *(env.step(action)[0]["state"] for action in actions)]
        first = original.reset(seed=seed)[0]["observation"].copy()
        expected = [first, *(original.step(action.astype(float))[0]["observation"].copy() for action in actions)]
        np.testing.assert_array_equal(np.stack(seen), np.stack(expected).astype(np.float32))


def test_seeds_differ_by_the_noise_alone() -> None:
    env = KitchenEnv()
    states = np.stack([env.reset(seed=seed)[0]["state"] for seed in range(6)])
    assert len(np.unique(states, axis=0)) == 6
    assert 0 < np.ptp(states, axis=0).max() <= 2 * 0.01 * 0.1  # twice the ratio times the amplitude of the robot's sensors


def test_the_positions_are_part_of_the_state() -> None:
    observation, _ = KitchenEnv().reset(seed=0)
    np.testing.assert_array_equal(observation["qpos"], positions_of(observation["state"]))


def moved(env: KitchenEnv, task: str) -> np.ndarray:
    """The initial state with the things of `task` where they are wanted."""
    state = env.reset(seed=0)[0]["state"].astype(np.float64)
    places = kitchen_env.OBS_ELEMENT_INDICES[task] + 9  # the speeds of the robot stand between its positions and the objects'
    state[places] = GOALS[task]
    return state


@pytest.mark.parametrize("task", TASKS)
def test_each_task_counts_by_itself(task: str) -> None:
    env = KitchenEnv(tasks=TASKS)
    _, info = env.reset(options={"state": moved(env, task)})
    assert info == {"success": False, "completed": 0.0}
    _, reward, terminated, truncated, info = env.step(zero()[0])
    assert (reward, terminated, truncated) == (pytest.approx(1 / 7), False, False)
    assert info == {"success": False, "completed": 1.0}


def test_what_was_done_stays_done_and_the_last_task_ends_the_episode() -> None:
    env = KitchenEnv(tasks=["light switch", "slide cabinet"])
    env.reset(seed=0, options={"state": moved(env, "light switch")})
    assert env.step(zero()[0])[1:4] == (0.5, False, False)
    robot = env._world.robot_env
    robot.data.qpos[:] = positions_of(moved_back := moved(KitchenEnv(), "slide cabinet"))
    assert abs(moved_back[26]) < 0.1  # the switch is off again
    _, reward, terminated, truncated, info = env.step(zero()[0])
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"success": True, "completed": 2.0})
    assert env.reset(seed=0)[1] == {"success": False, "completed": 0.0}
    assert env.step(zero()[0])[1] == 0.0


def test_a_state_is_restored_up_to_the_noise(demonstrations: Any) -> None:
    env = KitchenEnv()
    for step in (0, 100, 1000):
        state = demonstrations.arrays["state"][step]
        observation, _ = env.reset(seed=1, options={"state": state})
        assert 0 < np.abs(observation["state"] - state).max() <= 0.01 * 0.1 + 1e-6
        quaternion = slice(3, 7)  # of the kettle, which the physics keeps at length one
        simulated, wanted = env._world.data.qpos.copy(), positions_of(state)
        np.testing.assert_allclose(simulated[:23], wanted[:23], atol=1e-6)
        np.testing.assert_allclose(simulated[23:][quaternion], wanted[23:][quaternion], atol=1e-3)


@pytest.mark.parametrize("state", [[0.0] * 58, [np.nan] * 59])
def test_bad_states_are_refused(state: list[float]) -> None:
    with pytest.raises(ValueError, match=r"options\['state'\] must be 59 finite numbers"):
        KitchenEnv().reset(seed=0, options={"state": state})


@pytest.mark.parametrize("tasks", [[], ["kettle", "kettle"], ["dishes"], ["kettle", "dishes"]])
def test_tasks_are_known_and_different(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="tasks must be different names"):
        KitchenEnv(tasks=tasks)


def test_actions_outside_their_range_are_clipped() -> None:
    ends = []
    for speed in (1.0, 40.0):
        env = KitchenEnv()
        env.reset(seed=2)
        ends.append(env.step(np.full(9, speed))[0]["state"])
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("start", ["recorded", "initial"])
@pytest.mark.parametrize("number", [0, 18])
def test_human_demonstrations_do_all_four_tasks(demonstrations: Any, number: int, start: str) -> None:
    episode = demonstrations.episode(number)
    env = gymnasium.make("drifting_policy.envs:drifting/Kitchen-v0")
    env.reset(seed=number, options={"state": episode["state"][0]} if start == "recorded" else None)
    scores = []
    for action in episode["action"]:
        _, reward, terminated, _, info = env.step(action)
        scores.append(float(reward))
        if terminated:
            break
    assert sorted(set(scores)) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert scores == sorted(scores)
    assert info == {"success": True, "completed": 4.0}
