"""What every environment of this project keeps: Gymnasium's rules, episodes made of seed and actions, memory of its own."""

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import load_env_creator
from gymnasium.utils.env_checker import check_env

import drifting_policy.envs

NAMES = sorted(name for name in gymnasium.registry if name.startswith("drifting/"))
LIKE_LIFT = [f"drifting/{world}-v0" for world in ("Can", "Square", "ToolHang", "Transport")]  # of one class with it


def make(name: str, **options: Any) -> gymnasium.Env:
    return gymnasium.make(f"{drifting_policy.envs.__name__}:{name}", **options)


def some_actions(env: gymnasium.Env, count: int) -> np.ndarray:
    """Random actions "n d" inside the action space."""
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    rng = np.random.default_rng(0)
    return rng.uniform(env.action_space.low, env.action_space.high, (count, *env.action_space.shape)).astype(np.float32)


def play(env: gymnasium.Env, *, seed: int) -> list[np.ndarray]:
    """Everything that an episode of random actions shows, as flat arrays."""
    seen = [env.reset(seed=seed)[0]]
    for action in some_actions(env, 12):
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        seen.append({**observation, "reward": np.array(reward), "success": np.array(info["success"])})
        if terminated:
            break
    return [value for each in seen for _, value in sorted(each.items())]


def test_the_environments_are_found() -> None:
    names = "BlockPush Can Conveyor Kitchen Lift Mixture Obstacle PushT Square ToolHang Transport"
    assert [f"drifting/{name}-v0" for name in names.split()] == NAMES


@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")
@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_accepts_it(name: str) -> None:
    check_env(make(name).unwrapped, skip_render_check=name in LIKE_LIFT)  # which is slow


@pytest.mark.parametrize("name", NAMES)
def test_the_evaluation_bounds_the_steps(name: str) -> None:
    assert gymnasium.spec(name).max_episode_steps is None


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_a_function_of_seed_and_actions(name: str) -> None:
    env = make(name)
    first = play(env, seed=7)
    for again in (play(env, seed=7), play(make(name), seed=7)):  # a used environment, a fresh one
        assert len(first) == len(again)
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_observations_share_no_memory(name: str) -> None:
    env = make(name)
    first, _ = env.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    second = env.step(some_actions(env, 1)[0])[0]
    assert not any(np.shares_memory(first[a], second[b]) for a in first for b in second)
    assert not any(np.shares_memory(first[a], first[b]) for a in first for b in first if a != b)
    for value in second.values():
        value += 1
    for key, value in first.items():
        np.testing.assert_array_equal(value, kept[key])


@pytest.mark.parametrize("name", NAMES)
def test_rendering_depends_on_the_episode_only(name: str) -> None:
    env = make(name, render_size=128)
    env.reset(seed=0)
    first = np.asarray(env.render())
    env.step(some_actions(env, 1)[0])
    moved = np.asarray(env.render())
    env.reset(seed=0)
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    assert (moved != first).any()
    np.testing.assert_array_equal(first, np.asarray(env.render()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "words"), [({"render_mode": "human"}, "rgb_array"), ({"render_size": 10}, "at least 96 px")]
)
def test_bad_settings_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_env_creator(gymnasium.spec(name).entry_point)(**gymnasium.spec(name).kwargs, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", ["too short", "nested", "nan", "infinite"])
def test_bad_actions_and_options_are_refused(name: str, bad: str) -> None:
    env = make(name).unwrapped
    env.reset(seed=0)
    good = some_actions(env, 1)[0]
    actions = {"too short": good[:-1], "nested": good[None], "nan": good.copy(), "infinite": good.copy()}
    actions["nan"][-1], actions["infinite"][0] = np.nan, np.inf
    with pytest.raises(ValueError, match=f"action must be {good.size} finite numbers"):
        env.step(actions[bad])
    with pytest.raises(ValueError, match="reset takes the option"):
        env.reset(options={"weather": [0.0]})


@pytest.mark.parametrize("module", ["push_t", "obstacle", "mixture", "kitchen", "conveyor", "block_push", "robomimic"])
def test_importing_prints_and_warns_nothing(module: str) -> None:
    command = [sys.executable, "-W", "error", "-c", f"import drifting_policy.envs.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
