"""The executor's seams agree with a plain loop over the steps of one episode, whatever the neighbours do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.chunking import ChunkExecutor, plan_noise
from drifting_policy.seams import SEAMS, Execution
from drifting_policy.types import ArraySpec, ConfigError, PolicySpec


class Continuing:
    """A chunk that tells of observation, noise and prefix; what follows the prefix goes on from its last command."""

    def __init__(self, *, to: int = 2, t: int = 12, ta: int = 3, max_prefix: int = 9) -> None:
        self.spec = PolicySpec({"x": ArraySpec((2,))}, ArraySpec((2,)), to, t, ta, 10.0)
        self.max_prefix = max_prefix
        self.calls: list[tuple[int, int]] = []

    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        first, k = self.spec.first_executed, 0 if prefix is None else prefix.shape[1]
        self.calls.append((len(obs["x"]), k))
        assert k <= self.max_prefix
        chunk = obs["x"].sum(axis=1, keepdims=True) + 10 * np.arange(self.spec.pred_horizon)[:, None]
        chunk = chunk if noise is None else chunk + noise
        if prefix is not None:
            chunk += 0.5 * prefix.sum(axis=1, keepdims=True)
            chunk[:, first : first + k] = prefix
        return np.asarray(chunk, np.float32)


def reference(policy: Continuing, observations: np.ndarray, seed: int, latency: int, execution: Execution) -> list[np.ndarray]:
    """The commands of one episode: `due` maps each step to come to what is executed then, as far as it is known."""
    spec, commands = policy.spec, []
    due: dict[int, np.ndarray] = {}
    period = execution.exec_horizon or spec.exec_horizon
    for step in range(len(observations)):
        if step % period == 0:
            window = observations[np.maximum(np.arange(step - spec.obs_horizon + 1, step + 1), 0)][None]
            noise = plan_noise(seed, 0 if execution.held_noise else step // period, spec.sample_shape)[None]
            k = latency + (execution.commit_steps if "prefix" in execution.seam else 0) if step else 0
            told = {"prefix": np.stack([due[step + i] for i in range(k)])[None]} if "prefix" in execution.seam and k else {}
            new = policy.act({"x": window}, noise=noise, **told)[0, spec.first_executed :]
            blend = [i for i in range(k, len(new)) if "fade" in execution.seam and step and step + i in due]
            blend = blend[: execution.fade_steps]
            for i, command in enumerate(new):
                if i in blend:
                    share = (blend.index(i) + 1) / (len(blend) + 1)
                    due[step + i] = np.float32(share * command + (1 - share) * due[step + i])
                elif i >= k:
                    due[step + i] = command
        commands.append(due[step])
    return commands


EXECUTIONS = st.builds(
    Execution,
    seam=st.sampled_from(SEAMS),
    fade_steps=st.integers(1, 6),
    exec_horizon=st.sampled_from([None, 1, 2, 4]),
    held_noise=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(execution=EXECUTIONS, num_envs=st.integers(1, 3), inference_batch=st.integers(1, 3), data=st.data())
def test_seams_agree_with_a_plain_loop(execution: Execution, num_envs: int, inference_batch: int, data: Any) -> None:
    ahead = 11 - (execution.exec_horizon or 3)
    latency = data.draw(st.integers(0, ahead))
    commit = data.draw(st.integers(0, ahead - latency)) if "prefix" in execution.seam else 0
    changes = execution.changes | {"commit_steps": commit}
    policy = Continuing(max_prefix=11)
    executor = ChunkExecutor(policy, num_envs, inference_batch=inference_batch, latency_steps=latency, **changes)
    observations = np.random.default_rng(0).normal(size=(2, 14, num_envs, 2)).astype(np.float32)
    for episode, steps in enumerate(observations):
        seeds = [10 * episode + env for env in range(num_envs)]
        executor.reset(seeds=seeds)
        begins = data.draw(st.lists(st.integers(0, 3), min_size=num_envs, max_size=num_envs))
        produced: list[list[np.ndarray]] = [[] for _ in seeds]
        for step, newest in enumerate(steps):
            active = np.array([step >= begin for begin in begins])
            actions = executor.step({"x": newest}, active)
            for env in np.flatnonzero(active).tolist():
                produced[env].append(actions[env])
        for env, (seed, begin) in enumerate(zip(seeds, begins, strict=True)):
            expected = reference(Continuing(max_prefix=11), steps[begin:, env], seed, latency, Execution(**changes))
            np.testing.assert_allclose(produced[env], expected, rtol=1e-5, atol=1e-5)
    assert {rows for rows, _ in policy.calls} == {inference_batch}


@pytest.mark.parametrize("seam", SEAMS)
def test_plans_at_once_are_the_steps_one_by_one(seam: str) -> None:
    stepped, planned = (ChunkExecutor(Continuing(), 2, latency_steps=2, seam=seam, exec_horizon=4) for _ in "ab")
    for executor in (stepped, planned):
        executor.reset(seeds=[1, 2])
    steps = np.random.default_rng(0).normal(size=(12, 2, 2)).astype(np.float32)
    expected = np.stack([stepped.step({"x": newest}) for newest in steps], axis=1)
    for step in range(0, 12, 4):
        window = steps[np.maximum(np.arange(step - 1, step + 1), 0)].swapaxes(0, 1)
        np.testing.assert_array_equal(planned.plan({"x": window}, [0, 1]), expected[:, step : step + 4])


def test_only_prefixes_tell_the_policy_and_not_in_the_first_plan() -> None:
    for seam, told in (("snap", [0, 0, 0]), ("fade", [0, 0, 0]), ("prefix", [0, 4, 4]), ("prefix_fade", [0, 4, 4])):
        policy = Continuing()
        executor = ChunkExecutor(policy, latency_steps=3, seam=seam, commit_steps=1 if "prefix" in seam else 0)
        for _ in range(7):
            executor.step({"x": np.zeros((1, 2))})
        assert [k for _, k in policy.calls] == told


def test_a_fade_lies_between_its_plans_and_ends_at_the_new_one() -> None:
    before, new = np.zeros((1, 6, 1)), np.ones((1, 9, 1))
    joined = Execution("fade", fade_steps=3).join(before, new, latency_steps=1)[0, :, 0]
    np.testing.assert_allclose(joined, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(
        Execution("fade", fade_steps=99).join(before, new, latency_steps=4)[0, 3:7, 0], [0, 1 / 3, 2 / 3, 1]
    )
    np.testing.assert_array_equal(Execution().join(before, new, latency_steps=2)[0, :4, 0], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seam": "jump"}, "Unknown seam 'jump'"),
        ({"fade_steps": 0}, "fade_steps must be at least 1"),
        ({"commit_steps": 1}, "commit_steps=1 is for seam=prefix and"),
        ({"exec_horizon": 0}, "exec_horizon must be at least 1"),
        ({"exec_horizon": 12}, "exec_horizon must lie between 1 and 11"),
        (
            {"latency_steps": 9},
            r"between 0 and 8, .* into the 11 planned steps .* exec_horizon is 3 \(a smaller one makes room\)",
        ),
        ({"latency_steps": 6, "seam": "prefix", "commit_steps": 3}, r"latency_steps \+ commit_steps = 3 must fit"),
        ({"latency_steps": 6, "seam": "prefix"}, "continues at most 5: train one with max_prefix=6 or more"),
    ],
)
def test_what_cannot_be_executed_is_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ChunkExecutor(Continuing(max_prefix=5), **options)


def test_a_smaller_exec_horizon_makes_room_for_a_long_delay() -> None:
    executor = ChunkExecutor(Continuing(), latency_steps=9, exec_horizon=2)
    assert executor.spec.exec_horizon == 2
    assert Execution(exec_horizon=2, held_noise=True).changes == {"exec_horizon": 2, "held_noise": True}
