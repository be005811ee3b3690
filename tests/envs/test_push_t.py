"""Push-T behaves as gym-pusht, restores recorded states and replays human demonstrations."""

import math
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

DEMONSTRATIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr.zip"


def make() -> gymnasium.Env:
    return gymnasium.make("drifting_policy.envs:drifting/PushT-v0")


@pytest.fixture
def demonstrations() -> dict[str, np.ndarray]:
    if not DEMONSTRATIONS.exists():
        pytest.skip(f"needs the published demonstrations at {DEMONSTRATIONS}")
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(zarr.storage.ZipStore(DEMONSTRATIONS, mode="r"), mode="r")
    return {
        key.rpartition("/")[2]: group[key][:] for key in ("data/state", "data/action", "data/keypoint", "meta/episode_ends")
    }


@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")
def test_gymnasium_accepts_it() -> None:
    check_env(make().unwrapped)


def test_the_evaluation_bounds_the_steps() -> None:
    assert gymnasium.spec("drifting/PushT-v0").max_episode_steps is None


def test_importing_prints_and_warns_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import drifting_policy.envs.push_t"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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


def test_an_episode_is_a_function_of_seed_and_actions() -> None:
    targets = np.random.default_rng(0).uniform(0, 512, (20, 2)).astype(np.float32)

    def play(env: gymnasium.Env) -> list[np.ndarray]:
        env.reset(seed=7)
        return [env.step(target)[0]["state"] for target in targets]

    env = make()
    first = play(env)
    np.testing.assert_array_equal(first, play(env))  # a used environment
    np.testing.assert_array_equal(first, play(make()))  # a fresh one


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


@pytest.mark.parametrize("action", [[1.0], [1.0, math.nan], [[1.0, 2.0]], [math.inf, 0.0]])
def test_bad_actions_are_refused(action: list[float]) -> None:
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be 2 finite numbers"):
        env.step(np.array(action))


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


def test_observations_share_no_memory() -> None:
    env = make()
    first, _ = env.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    first["agent_pos"] += 1
    np.testing.assert_array_equal(first["state"], kept["state"])
    second = env.step(np.array([0, 0], np.float32))[0]
    assert not any(np.shares_memory(first[a], second[b]) for a in first for b in second)


def test_rendering_depends_on_the_episode_only() -> None:
    env = gymnasium.make("drifting_policy.envs:drifting/PushT-v0", render_size=128)
    env.reset(seed=0)
    first = env.render()
    env.step(np.array([10, 10], np.float32))
    moved = env.render()
    env.reset(seed=0)
    again = env.render()
    assert isinstance(first, np.ndarray)
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    assert (np.asarray(moved) != first).any()
    np.testing.assert_array_equal(first, again)


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
