"""The executor agrees with a plain loop per episode, whatever its neighbours do, and a failed step changes nothing."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.chunking import ChunkExecutor, plan_noise
from drifting_policy.types import ArraySpec, ConfigError, ObservationError, PolicySpec


class EchoPolicy:
    """A chunk that spells out what the policy was given: window, step number and noise."""

    max_prefix = 0

    def __init__(self, *, to: int = 2, t: int = 8, ta: int = 3) -> None:
        self.spec = PolicySpec({"x": ArraySpec((2,))}, ArraySpec((2,)), to, t, ta, 10.0)
        self.calls: list[tuple[np.ndarray, np.ndarray | None]] = []

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        self.calls.append((obs["x"].copy(), None if noise is None else noise.copy()))
        weights = 10.0 ** -np.arange(self.spec.obs_horizon)
        chunk = np.einsum("btd,t->bd", obs["x"], weights)[:, None] + 100 * np.arange(self.spec.pred_horizon)[:, None]
        return np.asarray(chunk if noise is None else chunk + noise, dtype=np.float32)


def episode_reference(policy: EchoPolicy, observations: np.ndarray, seed: int | None) -> list[np.ndarray]:
    """The commands of one episode, "s d" observations, without any batching."""
    spec, commands = policy.spec, []
    history = [observations[0]] * spec.obs_horizon
    for step, newest in enumerate(observations):
        history = [*history[1:], newest] if step else history
        if step % spec.exec_horizon == 0:
            noise = None if seed is None else plan_noise(seed, step // spec.exec_horizon, spec.sample_shape)[None]
            chunk = policy.act({"x": np.stack(history)[None]}, noise=noise)[0]
        commands.append(chunk[spec.first_executed + step % spec.exec_horizon])
    return commands


def delayed_reference(policy: EchoPolicy, observations: np.ndarray, seed: int, latency: int) -> list[np.ndarray]:
    """The commands of one episode: at each step that of the newest plan whose commands are available."""
    spec, plans, commands = policy.spec, {}, []
    for step in range(len(observations)):
        if step % spec.exec_horizon == 0:
            history = observations[np.maximum(np.arange(step - spec.obs_horizon + 1, step + 1), 0)]
            noise = plan_noise(seed, step // spec.exec_horizon, spec.sample_shape)[None]
            plans[step] = policy.act({"x": history[None]}, noise=noise)[0]
        made = max(step_of for step_of in plans if step_of == 0 or step_of + latency <= step)
        commands.append(plans[made][spec.first_executed + step - made])
    return commands


HORIZONS = [(1, 1, 1), (1, 4, 4), (2, 8, 3), (3, 6, 4), (2, 12, 2), (1, 9, 1)]


@settings(max_examples=40, deadline=None)
@given(horizons=st.sampled_from(HORIZONS), num_envs=st.integers(1, 3), inference_batch=st.integers(1, 4), data=st.data())
def test_late_plans_take_over_when_they_are_available(
    horizons: tuple[int, int, int], num_envs: int, inference_batch: int, data: Any
) -> None:
    to, t, ta = horizons
    latency = data.draw(st.integers(0, t - (to - 1) - ta))
    policy = EchoPolicy(to=to, t=t, ta=ta)
    executor = ChunkExecutor(policy, num_envs, inference_batch=inference_batch, latency_steps=latency)
    observations = np.random.default_rng(0).normal(size=(2, 14, num_envs, 2)).astype(np.float32)
    for episode, steps in enumerate(observations):
        seeds = [10 * episode + env for env in range(num_envs)]
        executor.reset(seeds=seeds)
        begins = data.draw(st.lists(st.integers(0, 3), min_size=num_envs, max_size=num_envs))  # out of step with each other
        produced: list[list[np.ndarray]] = [[] for _ in seeds]
        for step, newest in enumerate(steps):
            active = np.array([step >= begin for begin in begins])
            actions = executor.step({"x": newest}, active)
            for env in np.flatnonzero(active).tolist():
                produced[env].append(actions[env])
        for env, (seed, begin) in enumerate(zip(seeds, begins, strict=True)):
            np.testing.assert_array_equal(produced[env], delayed_reference(policy, steps[begin:, env], seed, latency))
            if latency == 0:
                np.testing.assert_array_equal(produced[env], episode_reference(policy, steps[begin:, env], seed))


@settings(max_examples=40, deadline=None)
@given(horizons=st.sampled_from(HORIZONS), inference_batch=st.integers(1, 4), seeded=st.booleans(), data=st.data())
def test_plans_at_once_are_the_steps_one_by_one(
    horizons: tuple[int, int, int], inference_batch: int, seeded: bool, data: Any
) -> None:
    to, t, ta = horizons
    latency = data.draw(st.integers(0, t - (to - 1) - ta))
    stepped, planned = (
        ChunkExecutor(EchoPolicy(to=to, t=t, ta=ta), 3, inference_batch=inference_batch, latency_steps=latency) for _ in "ab"
    )
    observations = np.random.default_rng(0).normal(size=(2, 3 * ta, 3, 2)).astype(np.float32)
    for episode, steps in enumerate(observations):
        for executor in (stepped, planned):
            executor.reset(seeds=[7 * episode, 1, 2] if seeded else None)
        expected = np.stack([stepped.step({"x": newest}) for newest in steps], axis=1)
        for step in range(0, len(steps), ta):
            window = steps[np.maximum(np.arange(step - to + 1, step + 1), 0)].swapaxes(0, 1)
            order = data.draw(st.permutations(range(3)))
            split = data.draw(st.integers(0, 3))
            for envs in (order[:split], order[split:]):
                if envs:
                    commands = planned.plan({"x": window[envs]}, envs)
                    np.testing.assert_array_equal(commands, expected[envs, step : step + ta])


def test_plans_that_make_no_sense_are_refused() -> None:
    executor = ChunkExecutor(EchoPolicy(), 2)
    windows = {"x": np.zeros((2, 2, 2), np.float32)}
    for envs in ([0], [1, 1], [0, 1, 1]):
        with pytest.raises(ValueError, match="one row of observations for each"):
            executor.plan(windows, envs)
    with pytest.raises(IndexError):
        executor.plan(windows, [0, 2])
    with pytest.raises(ObservationError, match="NaN"):
        executor.plan({"x": np.full((2, 2, 2), np.nan, np.float32)}, [0, 1])
    executor.step({"x": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match="has commands left"):
        executor.plan(windows, [0, 1])


def test_a_latency_beyond_the_chunk_is_refused() -> None:
    assert ChunkExecutor(EchoPolicy(to=2, t=8, ta=3), latency_steps=4).num_envs == 1
    for steps in (5, -1):
        with pytest.raises(ConfigError, match=rf"between 0 and 4, .* must fit into the 7 planned steps .*; got {steps}\."):
            ChunkExecutor(EchoPolicy(to=2, t=8, ta=3), latency_steps=steps)


@settings(max_examples=40, deadline=None)
@given(
    horizons=st.sampled_from([(1, 1, 1), (1, 4, 4), (2, 8, 3), (3, 6, 4)]),
    num_envs=st.integers(1, 4),
    inference_batch=st.integers(1, 5),
    data=st.data(),
)
def test_it_agrees_with_a_plain_loop(horizons: tuple[int, int, int], num_envs: int, inference_batch: int, data: Any) -> None:
    to, t, ta = horizons
    policy = EchoPolicy(to=to, t=t, ta=ta)
    executor = ChunkExecutor(policy, num_envs, inference_batch=inference_batch)
    steps = data.draw(st.integers(1, 10))
    masks = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=num_envs, max_size=num_envs), min_size=steps, max_size=steps))
    )
    restarts = masks & (np.random.default_rng(steps).random(masks.shape) < 0.2)
    observations = np.random.default_rng(0).normal(size=(steps, num_envs, 2)).astype(np.float32)
    episodes: dict[int, tuple[int | None, list[int]]] = {env: (None, []) for env in range(num_envs)}
    taken: list[tuple[int, int | None, list[int], list[np.ndarray]]] = []
    produced: dict[int, list[np.ndarray]] = {env: [] for env in range(num_envs)}
    for step in range(steps):
        if restarts[step].any():
            new = np.flatnonzero(restarts[step]).tolist()
            executor.reset(restarts[step], seeds=[100 * step + env for env in new])
            for env in new:
                taken.append((env, *episodes[env], produced[env]))
                episodes[env], produced[env] = (100 * step + env, []), []
        hidden = np.where(masks[step, :, None], observations[step], np.nan)
        actions = executor.step({"x": hidden}, masks[step])
        assert np.isnan(actions[~masks[step]]).all()
        for env in np.flatnonzero(masks[step]).tolist():
            episodes[env][1].append(step)
            produced[env].append(actions[env])
    taken += [(env, *episodes[env], produced[env]) for env in range(num_envs)]
    for env, seed, at, commands in taken:
        if at:
            np.testing.assert_array_equal(commands, episode_reference(policy, observations[at, env], seed))


def test_blocks_have_exactly_the_inference_batch() -> None:
    policy = EchoPolicy()
    executor = ChunkExecutor(policy, 5, inference_batch=3)
    executor.reset(seeds=range(5))
    executor.step({"x": np.arange(10.0).reshape(5, 2)})
    assert [window.shape for window, _ in policy.calls] == [(3, 2, 2)] * 2
    window, noise = policy.calls[1]
    np.testing.assert_array_equal(window[1], window[2])
    assert noise is not None
    np.testing.assert_array_equal(noise[1], noise[2])


def test_seeded_and_unseeded_episodes_do_not_share_a_call() -> None:
    policy = EchoPolicy()
    executor = ChunkExecutor(policy, 3, inference_batch=3)
    executor.reset(np.array([False, True, False]), seeds=[5])
    executor.step({"x": np.zeros((3, 2))})
    assert [noise is None for _, noise in policy.calls] == [False, True]


def test_noise_is_keyed_by_episode_and_plan() -> None:
    keys = [*itertools.product(range(4), range(4)), (2**64 - 1, 0)]
    noises = [plan_noise(seed, plan, (8, 2)) for seed, plan in keys]
    assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.combinations(noises, 2))
    np.testing.assert_array_equal(plan_noise(3, 2, (8, 2)), noises[keys.index((3, 2))])
    values = np.concatenate([plan_noise(seed, 0, (16, 2)).ravel() for seed in range(500)]).astype(np.float64)
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_planning_times_come_from_the_clock() -> None:
    ticks = itertools.count()
    executor = ChunkExecutor(EchoPolicy(ta=2), 2, clock=lambda: next(ticks) ** 2)
    for _ in range(3):
        executor.step({"x": np.zeros((2, 2))})
    assert executor.plan_seconds == [1, 5, 9, 13]


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        ({}, "missing: .'x'"),
        ({"x": np.zeros((2, 2)), "y": np.zeros((2, 2))}, "unknown: .'y'"),
        ({"x": np.zeros((2, 3))}, r"'x' must have shape \(2, 2\).*got \(2, 3\)"),
        ({"x": np.zeros(2)}, r"one row per environment; got \(2,\)"),
        ({"x": np.array([["a", "b"]] * 2)}, "'x' must fit into dtype float32"),
        ({"x": np.array([[0, np.nan], [0, 0]])}, "'x' holds NaN or infinity"),
        ({"x": np.array([[0, 1e300], [0, 0]])}, "'x' holds NaN or infinity"),
    ],
)
def test_a_failed_step_changes_nothing(obs: dict[str, np.ndarray], words: str) -> None:
    tried, untouched = ChunkExecutor(EchoPolicy(), 2), ChunkExecutor(EchoPolicy(), 2)
    rng = np.random.default_rng(0)
    for executor in (tried, untouched):
        executor.reset(seeds=[1, 2])
    for _ in range(6):
        good = {"x": rng.normal(size=(2, 2))}
        with pytest.raises(ObservationError, match=words):
            tried.step(obs)
        np.testing.assert_array_equal(tried.step(good), untouched.step(good))


def test_a_failing_policy_changes_nothing() -> None:
    class Moody(EchoPolicy):
        broken = False

        def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
            chunk = super().act(obs, noise=noise)
            return chunk * np.nan if self.broken else chunk

    policy = Moody()
    executor = ChunkExecutor(policy)
    executor.reset(seeds=[1])
    policy.broken = True
    with pytest.raises(ValueError, match="NaN"):
        executor.step({"x": np.ones((1, 2))})
    policy.broken = False
    np.testing.assert_array_equal(
        executor.step({"x": np.zeros((1, 2))})[0], episode_reference(EchoPolicy(), np.zeros((1, 2), np.float32), 1)[0]
    )


def test_chunks_of_a_wrong_shape_are_refused() -> None:
    policy = EchoPolicy()
    policy.spec = EchoPolicy(t=9).spec
    executor = ChunkExecutor(policy, inference_batch=2)
    policy.spec = EchoPolicy(t=8).spec
    with pytest.raises(ValueError, match=r"shape \(2, 9, 2\); it returned \(2, 8, 2\)"):
        executor.step({"x": np.zeros((1, 2))})


def test_bad_masks_and_seeds_are_refused() -> None:
    executor = ChunkExecutor(EchoPolicy(), 2)
    with pytest.raises(ValueError, match="2 booleans"):
        executor.reset(np.array([True]))
    with pytest.raises(ValueError, match="2 booleans"):
        executor.step({"x": np.zeros((2, 2))}, np.array([1, 0]))
    with pytest.raises(ValueError, match="one seed for each of the 1 environments; got 2"):
        executor.reset(np.array([True, False]), seeds=[1, 2])
    with pytest.raises(ValueError, match=r"\[0, 2\^64\)"):
        executor.reset(seeds=[1, -1])
    with pytest.raises(ValueError, match="at least 1"):
        ChunkExecutor(EchoPolicy(), 0)
