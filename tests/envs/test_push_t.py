"""Push-T behaves as gym-pusht, restores recorded states and replays human demonstrations."""

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

DEMONSTRATIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr.zip"


def make(**options: Any) -> gymnasium.Env:
    return gymnasium.make("drifting_policy.envs:drifting/PushT-v0", **options)


@pytest.fixture
def demonstrations() -> dict[str, np.ndarray]:
    if not DEMONSTRATIONS.exists():
        pytest.skip(f"needs the published demonstrations at {DEMONSTRATIONS}")
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(zarr.storage.ZipStore(DEMONSTRATIONS, mode="r"), mode="r")
    return {
        key.rpartition("/")[2]: group[key][:] for key in ("data/state", "data/action", "data/keypoint", "meta/episode_ends")
    } | {"img": group["data/img"][:640]}


def test_initial_states_are_those_of_gym_pusht() -> None:
    from gym_pusht.envs.pusht import PushTEnv as Original

    env, original = make(), Original()
    states = []
    for seed in (0, 1, 2, 100_000):
        observation, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(observation["state"], original.reset(seed=seed)[0].astype(np.float32))
        states.append(observation["state"])
    np.testing.assert_array_equal(env.reset()[0]["state"], original.reset()[0].astype(np.float32))
    assert len(np.unique(states, axis=0)) == 4


def test_coverage_is_the_same_to_the_last_bit_wherever_the_world_lies_in_memory() -> None:
    states = np.random.default_rng(0).uniform([0, 0, 200, 200, 0], [1, 1, 300, 300, 6], (20, 5))
    worlds = [make() for _ in range(12)]  # neighbours in memory, in another order each
    assert all(len({env.reset(options={"state": state})[1]["coverage"] for env in worlds}) == 1 for state in states)
    rewards = [[env.reset(options={"state": state}) and env.step(state[:2])[1] for state in states] for env in worlds]
    assert all(reward == rewards[0] for reward in rewards)


def test_reward_follows_coverage() -> None:
    env = make()
    env.reset(seed=0, options={"state": [100, 100, 256, 256, math.pi / 4 + 0.05]})
    _, reward, terminated, _, info = env.step(np.array([100, 100], np.float32))
    assert 0.5 < info["coverage"] < 0.95
    assert reward == pytest.approx(info["coverage"] / 0.95)
    assert not terminated
    assert not info["success"]
    _, info = env.reset(options={"state": [100, 100, 256, 256, math.pi / 4]})
    assert info == {"coverage": pytest.approx(1.0), "success": True}
    _, reward, terminated, truncated, info = env.step(np.array([100, 100], np.float32))
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)


@pytest.mark.parametrize("state", [[100, 100, 256, 256, 0.3], [450.5, 60.25, 130, 380, 6.28], [230, 210, 256, 256, 3.0]])
def test_a_state_is_restored_exactly(state: list[float]) -> None:
    env = make()
    env.reset(seed=0)
    env.step(np.array([300, 300], np.float32))
    observation, _ = env.reset(options={"state": state})
    np.testing.assert_allclose(observation["state"], state, rtol=1e-6)
    np.testing.assert_array_equal(observation["agent_pos"], observation["state"][:2])


@pytest.mark.parametrize("options", [{"state": [1, 2, 3]}, {"state": [1, 2, 3, 4, math.nan]}, {"reset_to_state": [0] * 5}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="state"):
        make().reset(seed=0, options=options)


def test_targets_outside_the_world_are_clipped() -> None:
    states = []
    for target in ([512.0, 0.0], [900.0, -50.0]):
        env = make().unwrapped
        env.reset(seed=3)
        for _ in range(15):
            observation = env.step(np.array(target))[0]
        states.append(observation["state"])
        assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(*states)


def test_keypoints_are_those_of_the_demonstrations(demonstrations: dict[str, np.ndarray]) -> None:
    from drifting_policy.envs.push_t import keypoints_of

    states, recorded = demonstrations["state"][::50], demonstrations["keypoint"][::50]
    errors = np.array([np.abs(keypoints_of(s[2:]) - k).max() for s, k in zip(states, recorded, strict=True)])
    assert np.median(errors) < 0.002
    assert errors.max() < 2.2  # a few recorded frames pair the keypoints with a slightly different pose


@pytest.mark.parametrize("episode", [0, 57, 120])
def test_human_demonstrations_replay(demonstrations: dict[str, np.ndarray], episode: int) -> None:
    ends = demonstrations["episode_ends"]
    steps = slice(0 if episode == 0 else ends[episode - 1], ends[episode])
    states, actions = demonstrations["state"][steps], demonstrations["action"][steps]
    env = make()
    observation, _ = env.reset(seed=0, options={"state": states[0]})
    best, errors = 0.0, []
    for state, action in zip(states, actions, strict=True):
        errors.append(np.abs(observation["state"][:4] - state[:4]).max())
        observation, reward, *_ = env.step(action)
        best = max(best, float(reward))
    assert max(errors) < 0.01
    assert best > 0.8


def test_pictures_are_those_of_the_demonstrations(demonstrations: dict[str, np.ndarray]) -> None:
    env, recorded = make(images=True), demonstrations["img"][::20].astype(int)
    shown = []
    for state in demonstrations["state"][:640:20]:
        env.reset(seed=0)
        env.step(np.array([100, 100], np.float32))  # a target, which the pictures must not show
        shown.append(env.reset(options={"state": state})[0]["image"].astype(int))
    error = np.abs(np.stack(shown) - recorded)
    assert error.mean() < 0.15
    assert (error.max(axis=-1) > 8).mean() < 0.006  # single pixels at the edges of the block
    assert np.abs(np.stack(shown)[..., ::-1] - recorded).mean() > 5 * error.mean()


def test_pictures_are_made_where_asked_and_show_no_target() -> None:
    plain, env = make(), make(images=True)
    assert "image" not in plain.reset(seed=4)[0]
    first, _ = env.reset(seed=4)
    assert env.observation_space.contains(first)
    assert (first["image"].shape, first["image"].dtype) == ((96, 96, 3), np.uint8)
    observation = env.step(np.array([100, 100], np.float32))[0]
    kept = observation["image"].copy()
    observation["image"] += 1
    again, _ = env.reset(options={"state": observation["state"].astype(np.float64)})
    assert np.abs(again["image"].astype(int) - kept).mean() < 0.05  # restored to float32, and without a target
    np.testing.assert_array_equal(env.reset(seed=4)[0]["image"], first["image"])
    np.testing.assert_array_equal(make(images=True).reset(seed=4)[0]["image"], first["image"])
    np.testing.assert_array_equal(plain.step(np.array([100, 100]))[0]["state"], observation["state"])
