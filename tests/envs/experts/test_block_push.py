"""The expert does its task in the mode it is told, from every beginning, by small steps that its seed determines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting_policy.envs.block_push import MODES, BlockPushEnv, initial_state
from drifting_policy.envs.experts.block_push import LARGEST_STEP, Expert, quarter, shortened, turned

LIMIT = 350


def play(env: BlockPushEnv, *, seed: int, mode: int) -> tuple[np.ndarray, dict[str, object]]:
    """The actions "steps 2" of one episode, and its last info."""
    obs, info = env.reset(seed=seed)
    expert, actions = Expert(np.random.default_rng(seed), mode), []
    while not info["success"] and len(actions) < LIMIT:
        actions.append(expert.act(obs["obs"]))
        obs, _, _, _, info = env.step(actions[-1])
    return np.stack(actions), info


def test_every_mode_ends_in_success_by_small_steps() -> None:
    env, lengths, agree = BlockPushEnv(), [], []
    for seed in range(700, 724):
        actions, info = play(env, seed=seed, mode=seed % len(MODES))
        assert info["success"], seed
        assert np.linalg.norm(actions, axis=1).max() <= LARGEST_STEP + 1e-12
        lengths.append(len(actions))
        agree.append(info["mode"] == seed % len(MODES))
    assert 60 < min(lengths) < max(lengths) < 200
    assert np.mean(agree) > 0.9  # on its way a block may cross the other target


def test_an_episode_is_a_function_of_its_seed() -> None:
    env = BlockPushEnv()
    first, again, other = (play(env, seed=seed, mode=1)[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or (first != other).any()


@pytest.mark.parametrize("skew", [-0.75, -0.4, 0.4, 0.75])
def test_a_block_that_lies_askew_is_turned(skew: float) -> None:
    values = initial_state(np.random.default_rng(1))
    way = values[10:12] - values[:2]
    values[2] = (np.arctan2(way[1], way[0]) - skew) % np.pi
    env = BlockPushEnv()
    obs, info = env.reset(seed=0, options={"obs": values})
    expert = Expert(np.random.default_rng(0), 0)
    for _ in range(120):
        obs, _, _, _, info = env.step(expert.act(obs["obs"]))
        if info["blocks"]:
            break
    assert info["mode"] == 0


@given(st.floats(-50, 50))
def test_a_quarter_turn_changes_no_square(angle: float) -> None:
    rest = quarter(angle)
    assert -np.pi / 4 - 1e-9 <= rest <= np.pi / 4 + 1e-9
    turns = (angle - rest) / (np.pi / 2)
    assert turns == pytest.approx(round(turns), abs=1e-9)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-7, 7), st.floats(1e-3, 1))
def test_vectors_are_turned_and_shortened(x: float, y: float, angle: float, length: float) -> None:
    vector = np.array([x, y])
    there = turned(vector, angle)
    assert complex(*there) == pytest.approx(complex(x, y) * np.exp(1j * angle), abs=1e-9)
    short = shortened(vector, length)
    assert np.linalg.norm(short) == pytest.approx(min(length, np.linalg.norm(vector)), abs=1e-9)
    assert short[0] * y == pytest.approx(short[1] * x, abs=1e-9)
