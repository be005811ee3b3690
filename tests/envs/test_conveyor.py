"""The conveyor carries, the gripper grips, the post stands in the way, and who sees the world late misses the block."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from drifting_policy.datasets.conveyor import attempt_once, delayed_success
from drifting_policy.envs.conveyor import (
    BELT_END,
    BIN,
    HIGHEST,
    LEFT,
    LIFTED,
    LOWEST,
    NEITHER,
    POST,
    REACH,
    RIGHT,
    STEP_SECONDS,
    ConveyorEnv,
    belt_speed,
    in_bin,
    initial_state,
)
from drifting_policy.envs.experts.conveyor import ConveyorExpert

START = np.array([0.05, -0.1, 0.17, 0.08, -0.25, -0.2, 0.08, 0.14, 0.03, 2.5, 1.0])


def play(env: ConveyorEnv, target: Any, *, steps: int = 120) -> list[tuple[Any, ...]]:
    """What each step gave while the gripper was sent to `target`, until the episode ended."""
    seen = []
    for _ in range(steps):
        seen.append(env.step(np.asarray(target, np.float32)))
        if seen[-1][2]:
            break
    return seen


def test_the_belt_carries_the_block_at_its_speed() -> None:
    env = ConveyorEnv()
    env.reset(options={"state": START})
    seen = play(env, [0.05, -0.1, 0.17, 0.08], steps=40)
    places = np.array([observation["block"] for observation, *_ in seen])
    speeds = [belt_speed(START, i * STEP_SECONDS) for i in range(40)]
    np.testing.assert_allclose(places[:, 0], START[4] + STEP_SECONDS * np.cumsum(speeds), atol=0.004)
    np.testing.assert_allclose(places[:, 1:], np.broadcast_to(START[5:7], (40, 2)), atol=0.002)


def test_the_speed_swings_about_its_mean() -> None:
    period = 2 * np.pi / START[9]
    speeds = np.array([belt_speed(START, seconds) for seconds in np.linspace(0, period, 1001)])
    assert speeds[:-1].mean() == pytest.approx(START[7])
    assert np.ptp(speeds) == pytest.approx(2 * START[8], rel=1e-4)
    assert belt_speed(START) == pytest.approx(START[7] + START[8] * np.sin(START[10]))


def test_the_state_tells_where_the_belt_is_in_its_swing() -> None:
    env = ConveyorEnv()
    env.reset(options={"state": START})
    observation = play(env, START[:4], steps=7)[-1][0]
    assert belt_speed(observation["state"]) == pytest.approx(belt_speed(START, 7 * STEP_SECONDS), abs=1e-6)
    np.testing.assert_array_equal(np.concatenate([observation["gripper"], observation["block"]]), observation["state"][:7])


def test_one_observation_does_not_tell_the_speed_and_two_do() -> None:
    env, fast = ConveyorEnv(), START.copy()
    fast[7] += 0.05
    seen = []
    for state in (START, fast):
        first, _ = env.reset(options={"state": state})
        seen.append((first, env.step(START[:4])[0]))
    for key in ("gripper", "block"):
        np.testing.assert_array_equal(seen[0][0][key], seen[1][0][key])
    assert seen[1][1]["block"][0] - seen[0][1]["block"][0] == pytest.approx(0.05 * STEP_SECONDS, abs=5e-4)


def test_initial_states_differ_within_their_ranges() -> None:
    rng = np.random.default_rng(0)
    states = np.stack([initial_state(rng) for _ in range(300)])
    assert ((states >= LOWEST) & (states <= HIGHEST)).all()
    spread = np.ptp(states, axis=0) / np.maximum(HIGHEST - LOWEST, 1e-9)
    assert (spread[HIGHEST > LOWEST] > 0.9).all()
    assert len(np.unique([ConveyorEnv().reset(seed=seed)[0]["state"] for seed in range(20)], axis=0)) == 20


def test_a_state_is_restored_exactly() -> None:
    env = ConveyorEnv()
    env.reset(seed=0)
    play(env, [0.3, 0.3, 0.05, 0.0], steps=30)
    observation, info = env.reset(options={"state": START})
    np.testing.assert_allclose(observation["state"], START.astype(np.float32), atol=1e-7)
    assert info == {"success": False, "lifted": False, "hit": False, "side": NEITHER}


@pytest.mark.parametrize("state", [START[:10], np.full(11, np.nan)])
def test_bad_states_are_refused(state: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"options\['state'\] must be 11 finite numbers"):
        ConveyorEnv().reset(seed=0, options={"state": state})


def test_a_block_that_nobody_takes_is_lost() -> None:
    env = ConveyorEnv()
    env.reset(options={"state": START})
    seen = play(env, START[:4], steps=200)
    observation, _, terminated, truncated, info = seen[-1]
    assert (terminated, truncated, info["success"], info["lifted"]) == (True, False, False, False)
    assert observation["block"][0] > BELT_END
    assert {step[1] for step in seen} == {0.0}


def test_targets_are_reached_and_clipped() -> None:
    env = ConveyorEnv()
    env.reset(options={"state": START})
    *_, (observation, *_) = play(env, [0.2, -0.1, 0.15, 0.05], steps=20)
    np.testing.assert_allclose(observation["gripper"], [0.2, -0.1, 0.15, 0.05], atol=0.003)
    ends = []
    for target in (REACH[1] * [1, -0.5, 1, 1], REACH[1] * [9, -0.5, 9, 9]):
        env.reset(options={"state": START})
        ends.append(play(env, target, steps=20)[-1][0]["gripper"])
    np.testing.assert_array_equal(*ends)


def test_the_post_ends_the_episode() -> None:
    env = ConveyorEnv()
    env.reset(options={"state": START})
    observation, reward, terminated, _, info = play(env, [POST[0], 0.3, 0.15, 0.08])[-1]
    assert (terminated, info["hit"], info["success"], reward) == (True, True, False, 0.0)
    assert observation["gripper"][1] < POST[1]


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_the_expert_goes_where_it_is_told_from_anywhere(side: int) -> None:
    env = ConveyorEnv()
    attempts = [attempt_once(env, seed=seed, side=side, margin=0.1) for seed in range(20)]
    assert sum(attempt.success for attempt in attempts) >= 19
    assert {attempt.side for attempt in attempts if attempt.success} == {side}


def test_the_reward_tells_lifting_from_delivering() -> None:
    env = ConveyorEnv()
    observation, _ = env.reset(seed=3)
    expert, rewards = ConveyorExpert(side=RIGHT), []
    while True:
        observation, reward, terminated, _, info = env.step(expert.act(observation))
        rewards.append(float(reward))
        assert info["lifted"] or observation["block"][2] <= LIFTED + 1e-6
        if terminated:
            break
    assert sorted(set(rewards)) == [0.0, 0.5, 1.0]
    assert rewards == sorted(rewards)
    assert rewards.count(1.0) == 1
    assert in_bin(observation["block"])
    assert np.abs(observation["block"][:2] - BIN).max() < 0.05


def test_the_mean_of_both_ways_runs_into_the_post() -> None:
    env, outcomes = ConveyorEnv(), []
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        experts = [ConveyorExpert(side=side) for side in (LEFT, RIGHT)]
        for _ in range(120):
            target = np.mean([expert.act(observation) for expert in experts], axis=0)
            observation, _, terminated, _, info = env.step(target)
            if terminated:
                break
        outcomes.append((info["lifted"], info["success"]))
    assert outcomes == [(True, False)] * 10


def test_who_sees_the_world_late_misses_the_block() -> None:
    success = {delay: delayed_success(delay, episodes=20) for delay in (0, 4, 8)}
    assert success[0] >= 0.95
    assert success[4] < 0.6
    assert success[8] < 0.2


def test_an_expert_knows_two_sides() -> None:
    with pytest.raises(ValueError, match=r"side must be 1 \(left\) or -1 \(right\); got 0"):
        ConveyorExpert(side=NEITHER)


def test_an_open_camera_leaves_in_peace() -> None:
    code = "from drifting_policy.envs.conveyor import ConveyorEnv; env = ConveyorEnv(); env.reset(seed=0); env.render()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_closed_camera_opens_again() -> None:
    env = ConveyorEnv(render_size=96)
    env.reset(seed=0)
    first = env.render()
    env.close()
    env.close()
    np.testing.assert_array_equal(env.render(), first)
    env.close()


def test_a_machine_that_cannot_draw_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux draws through EGL")
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    env = ConveyorEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"Nothing can be drawn on this machine .*Install EGL"):
        env.render()
    env.close()


def test_a_picture_shows_the_block_on_its_way() -> None:
    env = ConveyorEnv(render_size=128)
    env.reset(options={"state": START})
    before = env.render().astype(int)
    play(env, START[:4], steps=20)
    after = env.render().astype(int)
    env.close()

    def column(image: np.ndarray) -> float:
        orange = (image[..., 0] > 180) & (abs(image[..., 1] - 0.65 * image[..., 0]) < 40) & (image[..., 2] < 90)
        assert orange.sum() > 10
        return float(np.nonzero(orange)[1].mean())

    assert 5 < column(after) - column(before) < 60  # to the right
