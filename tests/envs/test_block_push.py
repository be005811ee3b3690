"""Blocks move when they are pushed and rest when they are not, count when they are in their targets, and replay bit for bit."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drifting_policy.data.replay_buffer import open_replay
from drifting_policy.envs.block_push import (
    BLOCKS,
    COMMAND,
    EFFECTOR,
    MODES,
    TOLERANCE,
    WORKSPACE,
    BlockPushEnv,
    initial_state,
    placed,
    within,
)

PUBLISHED = "data/blockpush/multimodal_push_seed_REGENERATED.zarr.zip"
TARGETS = (0.28, 0.2, 0.0, 0.52, 0.2, 0.0)
TOUCH = 0.026  # half a block and the radius of the effector


def state(block: tuple[float, ...], block2: tuple[float, ...], effector: tuple[float, float] = (0.3, -0.4)) -> np.ndarray:
    """A configuration at rest with the usual targets, as float32 holds it."""
    return np.array([*block, *block2, *effector, *effector, *TARGETS], np.float32)


def started(values: np.ndarray, action: str = "absolute") -> BlockPushEnv:
    env = BlockPushEnv(action=action)
    env.reset(seed=0, options={"obs": values})
    return env


def observe(env: BlockPushEnv, *actions: tuple[float, float] | np.ndarray) -> np.ndarray:
    """The observations "steps 16" after each action."""
    return np.stack([env.step(np.asarray(action))[0]["obs"] for action in actions])


def pushes(seed: int, count: int = 40) -> np.ndarray:
    """Absolute actions that run into the first block of the episode of `seed` and beyond it."""
    rng, env = np.random.default_rng(seed), BlockPushEnv()
    obs = env.reset(seed=seed)[0]["obs"]
    way = np.linspace(obs[COMMAND : COMMAND + 2], obs[:2] * 2 - obs[COMMAND : COMMAND + 2], count)
    return np.asarray(way + rng.normal(0, 0.002, way.shape), np.float32)


def test_initial_states_are_spread_as_declared_and_all_different() -> None:
    rng = np.random.default_rng(0)
    states = np.stack([initial_state(rng) for _ in range(2000)])
    assert len(np.unique(states, axis=0)) == len(states)
    np.testing.assert_array_equal(states, states.astype(np.float32))
    assert np.abs(states[:, 0] - states[:, 3]).min() > 0.1 - 1e-6
    for begin in BLOCKS:
        np.testing.assert_allclose(states[:, begin : begin + 3].min(0), [0.3, -0.35, 1.0], atol=0.01)
        np.testing.assert_allclose(states[:, begin : begin + 3].max(0), [0.5, -0.05, np.pi], atol=0.01)
    assert np.linalg.norm(states[:, 10:12] - states[:, 13:15], axis=1).min() > 2 * TOLERANCE
    assert 0.45 < (states[:, 10] < 0.4).mean() < 0.55
    assert not within(states).any()


def test_initial_states_are_those_of_the_published_demonstrations(shared: Path) -> None:
    buffer = open_replay(shared / PUBLISHED, ["obs"])
    published = buffer.arrays["obs"][buffer.starts]
    rng = np.random.default_rng(0)
    ours = np.stack([initial_state(rng) for _ in range(4000)])
    shares = np.linspace(0, 1, 21)
    for column in (0, 1, 2, 3, 4, 5, 11, 14):
        there, here = np.quantile(published[:, column], shares), np.quantile(ours[:, column], shares)
        assert np.abs(there - here).max() < 0.08 * np.ptp(there), column
    np.testing.assert_allclose(ours[:, 6:10].mean(0), published[:, 6:10].mean(0), atol=2e-3)
    for column in (10, 13):  # two places, drawn at random
        np.testing.assert_allclose(np.quantile(ours[:, column], [0, 1]), np.quantile(published[:, column], [0, 1]), atol=5e-4)


def test_half_a_second_of_published_pushes_has_the_published_effect(shared: Path) -> None:
    buffer = open_replay(shared / PUBLISHED, ["obs", "action_abs"])
    obs, action, rng, steps = buffer.arrays["obs"], buffer.arrays["action_abs"], np.random.default_rng(1), 5
    inside = np.concatenate([np.arange(a, b - steps) for a, b in zip(buffer.starts, buffer.episode_ends, strict=True)])
    moved = np.abs(obs[inside + steps] - obs[inside])[:, [0, 1, 3, 4]].max(axis=1)
    env, errors, ways = BlockPushEnv(action="absolute"), [], []
    for step in rng.choice(inside[moved > 0.04], 200, replace=False):
        env.reset(options={"obs": obs[step]})
        last = observe(env, *action[step : step + steps])[-1]
        block = BLOCKS[int(np.linalg.norm(obs[step + steps][3:5] - obs[step][3:5]) > 0.02)]
        turn = (last[block + 2] - obs[step + steps][block + 2] + np.pi / 4) % (np.pi / 2) - np.pi / 4
        errors.append([np.linalg.norm((last - obs[step + steps])[block : block + 2]), abs(turn)])
        ways.append(np.linalg.norm((obs[step + steps] - obs[step])[block : block + 2]))
    position, yaw = np.median(errors, axis=0)
    assert np.median(ways) > 0.06
    assert position < 0.007
    assert yaw < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_restored_continues_as_it_did(seed: int) -> None:
    actions = pushes(seed)
    env = BlockPushEnv(action="absolute")
    first = env.reset(seed=seed)[0]["obs"]
    original = observe(env, *actions)
    assert np.abs(original[-1] - first)[:2].max() > 0.02  # the block was pushed
    again = BlockPushEnv(action="absolute")
    again.reset(seed=99)
    observe(again, *pushes(99)[:7])
    np.testing.assert_array_equal(again.reset(options={"obs": first})[0]["obs"], first)
    np.testing.assert_array_equal(observe(again, *actions), original)


def test_an_episode_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib, numpy as np; from drifting_policy.envs.block_push import BlockPushEnv\n"
        "env = BlockPushEnv(action='absolute'); rows = [env.reset(seed=3)[0]['obs']]\n"
        "rows += [env.step(a)[0]['obs'] for a in np.linspace(rows[0][8:10], 2 * rows[0][:2] - rows[0][8:10], 30)]\n"
        "print(hashlib.sha256(np.stack(rows).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    env = BlockPushEnv(action="absolute")
    rows = [env.reset(seed=3)[0]["obs"]]
    rows += [*observe(env, *np.linspace(rows[0][8:10], 2 * rows[0][:2] - rows[0][8:10], 30))]
    assert done.stdout.strip() == hashlib.sha256(np.stack(rows).tobytes()).hexdigest()


def test_both_kinds_of_action_say_the_same() -> None:
    absolute, relative = BlockPushEnv(action="absolute"), BlockPushEnv(action="delta")
    start = absolute.reset(seed=5)[0]["obs"]
    relative.reset(seed=5)
    actions = pushes(5)
    deltas = np.diff(actions.astype(np.float64), axis=0, prepend=start[None, COMMAND : COMMAND + 2].astype(np.float64))
    np.testing.assert_array_equal(observe(absolute, *actions), observe(relative, *deltas))


@pytest.mark.parametrize(
    ("action", "given", "command"),
    [
        ("delta", (0.03, -0.02), (0.43, -0.02)),
        ("delta", (5.0, -0.2), (0.5, -0.1)),
        ("absolute", (0.2, 0.3), (0.2, 0.3)),
        ("absolute", (9.0, -9.0), (0.7, -0.5)),
    ],
)
def test_the_target_stays_in_its_bounds(action: str, given: tuple[float, float], command: tuple[float, float]) -> None:
    env = started(state((0.3, -0.2, 0.5), (0.5, -0.3, 0.5), (0.4, 0.0)), action)
    np.testing.assert_allclose(observe(env, given)[0, COMMAND : COMMAND + 2], command, atol=1e-6)
    low, high = (env.action_space.low, env.action_space.high)
    np.testing.assert_allclose([low, high], WORKSPACE if action == "absolute" else [[-0.1, -0.1], [0.1, 0.1]])


def test_the_effector_follows_and_untouched_blocks_rest() -> None:
    env = started(state((0.35, -0.2, 0.7), (0.5, -0.1, 2.0), (0.2, -0.4)))
    path = np.linspace([0.2, -0.4], [0.2, 0.2], 21)[1:]
    seen = observe(env, *path)
    assert np.linalg.norm(seen[:, EFFECTOR : EFFECTOR + 2] - path, axis=1).max() < 0.003
    assert np.linalg.norm(observe(env, path[-1])[0, EFFECTOR : EFFECTOR + 2] - path[-1]) < 3e-4
    np.testing.assert_allclose(seen[:, :6], [[0.35, -0.2, 0.7, 0.5, -0.1, 2.0]] * 20, atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.3])
def test_a_push_through_the_middle_moves_a_block_straight_ahead(angle: float) -> None:
    ahead, begin = np.array([-np.sin(angle), np.cos(angle)]), np.array([0.4, -0.2])
    env = started(state((*begin, angle), (0.2, 0.4, 0.0), tuple(begin - 0.04 * ahead)))
    way = np.arange(-0.04, 0.061, 0.01)[1:, None] * ahead + begin
    last = observe(env, *way, way[-1])[-1]
    along, left = (last[:2] - begin) @ ahead, (last[:2] - begin) @ [ahead[1], -ahead[0]]
    assert along == pytest.approx(0.06 + TOUCH, abs=0.006)
    assert abs(left) < 0.003
    assert abs((last[2] - angle + np.pi / 4) % (np.pi / 2) - np.pi / 4) < 0.05
    still = observe(env, way[-1], way[-1])
    np.testing.assert_allclose(still[1], still[0], atol=3e-4)  # nothing coasts


@pytest.mark.parametrize("side", [-1, 1])
def test_a_push_beside_the_middle_turns_a_block(side: int) -> None:
    env = started(state((0.4, -0.2, 1.5), (0.2, 0.4, 0.0), (0.4 + 0.014 * side, -0.25)))
    seen = observe(env, *([0.4 + 0.014 * side, y] for y in np.arange(-0.24, -0.19, 0.01)))
    assert 0.15 < side * (seen[-1, 2] - 1.5) < 1.0


def test_blocks_push_each_other() -> None:
    env = started(state((0.4, -0.2, 0.0), (0.4, -0.155, 0.0), (0.4, -0.25)))
    last = observe(env, *([0.4, y] for y in np.arange(-0.24, -0.139, 0.01)))[-1]
    assert last[4] - last[1] == pytest.approx(0.04, abs=0.002)
    assert last[1] > -0.13


@pytest.mark.parametrize("table", list(itertools.product([False, True], repeat=4)))
def test_blocks_in_different_targets_are_counted(table: tuple[bool, ...]) -> None:
    inside = np.array(table).reshape(2, 2)
    pairings = ([(0, 0), (1, 1)], [(0, 1), (1, 0)])
    assert placed(inside) == max(sum(bool(inside[pair]) for pair in pairing) for pairing in pairings)
    assert placed(np.stack([inside, inside]))[1] == placed(inside)


@pytest.mark.parametrize(
    ("block", "block2", "score", "mode"),
    [
        ((0.4, -0.1), (0.5, -0.2), 0.0, -1),
        ((0.28, 0.2), (0.5, -0.2), 0.5, 0),
        ((0.4, -0.1), (0.28, 0.24), 0.5, 2),
        ((0.25, 0.2), (0.3, 0.205), 0.5, 0),  # both in the same
        ((0.28, 0.2), (0.53, 0.21), 1.0, 0),
        ((0.53, 0.21), (0.28, 0.2), 1.0, 1),
        ((0.28, 0.2 - TOLERANCE + 0.001), (0.5, -0.2), 0.5, 0),
        ((0.28, 0.2 - TOLERANCE - 0.001), (0.5, -0.2), 0.0, -1),
    ],
)
def test_the_score_is_the_share_of_blocks_in_their_own_target(
    block: tuple[float, float], block2: tuple[float, float], score: float, mode: int
) -> None:
    env = BlockPushEnv(action="absolute")
    values = state((*block, 0.3), (*block2, 1.0))
    _, told = env.reset(options={"obs": values})
    _, reward, terminated, truncated, info = env.step(np.array([0.3, -0.4]))
    assert (reward, terminated, truncated) == (score, score == 1.0, False)
    assert info == told == {"success": score == 1.0, "blocks": round(2 * score), "mode": mode}
    assert placed(within(values)) == info["blocks"]


def test_the_mode_is_what_happened_first() -> None:
    env = started(state((0.52, 0.11, 0.0), (0.28, 0.11, 0.0), (0.52, 0.05)))
    told = [env.step(np.array([0.52, y]))[4] for y in np.arange(0.06, 0.17, 0.01)]
    assert {info["mode"] for info in told} == {-1, MODES.index((0, 1))}
    path = [(0.52, 0.05), (0.4, 0.0), (0.28, 0.05), *((0.28, y) for y in np.arange(0.06, 0.17, 0.01))]
    for point in path:
        _, _, terminated, _, info = env.step(np.array(point))
        if terminated:
            break
    assert info == {"success": True, "blocks": 2, "mode": MODES.index((0, 1))}


def test_looking_changes_nothing() -> None:
    actions, seen = pushes(2, 24), []
    for looks in (False, True):
        env = BlockPushEnv(action="absolute", render_size=96)
        env.reset(seed=2)
        rows = []
        for action in actions:
            rows.append(env.step(action)[0]["obs"])
            if looks:
                env.render()
        env.close()
        seen.append(np.stack(rows))
    np.testing.assert_array_equal(*seen)


def test_pictures_show_blocks_zones_and_effector() -> None:
    env = BlockPushEnv(render_size=128)
    env.reset(options={"obs": state((0.35, -0.2, 0.7), (0.5, -0.1, 2.0))})
    whole = env.render().astype(int)
    moved = state((0.35, -0.1, 0.7), (0.5, -0.1, 2.0))
    env.reset(options={"obs": moved})
    changed = np.abs(env.render().astype(int) - whole).sum(axis=2) > 30
    rows, columns = np.nonzero(changed)
    assert 40 < changed.sum() < 2000  # one block, where it was and where it is
    assert np.ptp(columns) < 40
    env.reset(options={"obs": np.r_[moved[:10], 0.4, 0.3, 0.0, TARGETS[3:]]})
    assert (np.abs(env.render().astype(int) - whole).sum(axis=2) > 30)[: rows.min()].any()  # a zone, beyond the blocks
    env.close()
    env.close()


@pytest.mark.parametrize("values", [[0.0] * 15, [np.nan] + [0.0] * 15, [np.inf] + [0.0] * 15])
def test_bad_configurations_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"options\['obs'\] must be 16 finite numbers"):
        BlockPushEnv().reset(seed=0, options={"obs": values})


def test_unknown_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="action must be one of delta, absolute; got 'velocity'"):
        BlockPushEnv(action="velocity")
