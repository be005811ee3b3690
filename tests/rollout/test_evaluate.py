"""An episode depends on its seed only; toy environments with a closed form, and a short real Push-T."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from drifting_policy.chunking import plan_noise
from drifting_policy.rollout.evaluate import EvalResult, evaluate
from drifting_policy.types import ArraySpec, ObservationError, PolicySpec, UserError


class Walk(gymnasium.Env[Any, np.ndarray]):
    """A point moves by the action; the reward is -|x|, and success is a visit of x < -1. Ends after 3 + seed % 4 steps."""

    observation_space = spaces.Dict(
        {"x": spaces.Box(-99, 99, (1,), np.float32), "extra": spaces.Box(-99, 99, (2,), np.float32)}
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    alive = 0

    def __init__(self) -> None:
        type(self).alive += 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=1).astype(np.float32)
        self.left = 3 + (seed or 0) % 4
        return {"x": self.x, "extra": np.zeros(2, np.float32)}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.x += action  # in place: who keeps observations must copy them
        self.left -= 1
        info = {"success": bool(self.x[0] < -1)}
        return {"x": self.x, "extra": np.zeros(2, np.float32)}, -abs(float(self.x[0])), self.left == 0, False, info

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.left, np.uint8)

    def close(self) -> None:
        type(self).alive -= 1


class NoisyPolicy:
    """Commands the first elements of its noise minus a tenth of the newest observation."""

    max_prefix = 0

    def __init__(self, key: str = "x", size: int = 1, dim: int = 1, scale: float = 1.0, centre: float = 0.0) -> None:
        self.spec = PolicySpec({key: ArraySpec((size,))}, ArraySpec((dim,)), 2, 6, 2, 10.0)
        self.key, self.scale, self.centre = key, scale, centre

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        assert set(obs) == {self.key}
        assert noise is not None
        newest = obs[self.key][:, -1:, : self.spec.action.shape[0]]
        return np.asarray(self.centre + self.scale * noise - 0.1 * (newest - self.centre), dtype=np.float32)


def same(first: EvalResult, second: EvalResult) -> bool:
    assert first.episodes == second.episodes
    assert first.trajectories.keys() == second.trajectories.keys()
    for seed, trajectory in first.trajectories.items():
        for key, values in trajectory.items():
            np.testing.assert_array_equal(values, second.trajectories[seed][key])
    return True


def test_it_agrees_with_a_plain_loop() -> None:
    policy, seed, max_steps = NoisyPolicy(), 6, 50
    result = evaluate(policy, Walk, [seed], max_steps=max_steps, keep_trajectories=True)
    env = Walk()
    x = [env.reset(seed=seed)[0]["x"].copy()]
    rewards, successes = [], []
    for step in range(5):
        if step % 2 == 0:
            noise = plan_noise(seed, step // 2, (6, 1))[None]
            chunk = policy.act({"x": np.stack([x[max(step - 1, 0)], x[step]])[None]}, noise=noise)[0]
        obs, reward, _, _, info = env.step(chunk[1 + step % 2])
        x.append(obs["x"].copy())
        rewards.append(reward)
        successes.append(info["success"])
    env.close()
    (episode,) = result.episodes
    assert (episode.seed, episode.steps, episode.success) == (seed, 5, any(successes))
    assert (episode.max_score, episode.final_score) == (max(rewards), rewards[-1])
    np.testing.assert_array_equal(result.trajectories[seed]["x"], x[:-1])
    np.testing.assert_array_equal(result.trajectories[seed]["x"] + result.trajectories[seed]["action"], x[1:])
    assert len(result.plan_seconds) == 3


@pytest.mark.parametrize("num_envs", [1, 2, 5, 30])
@pytest.mark.parametrize("inference_batch", [1, 4])
def test_the_result_depends_neither_on_slots_nor_on_order(num_envs: int, inference_batch: int) -> None:
    seeds = [*range(11), 2**40]
    reference = evaluate(NoisyPolicy(), Walk, seeds, max_steps=5, keep_trajectories=True)
    shuffled = np.random.default_rng(num_envs).permutation(seeds).tolist()
    result = evaluate(
        NoisyPolicy(),
        Walk,
        shuffled,
        num_envs=num_envs,
        max_steps=5,
        inference_batch=inference_batch,
        video_seeds=[3],
        keep_trajectories=True,
    )
    assert same(reference, result)
    assert [episode.seed for episode in result.episodes] == seeds
    assert {episode.steps for episode in result.episodes} == {3, 4, 5}
    assert 0 < sum(episode.success for episode in result.episodes) < len(seeds)
    assert Walk.alive == 0


def test_a_noise_seed_changes_the_noise_and_nothing_else() -> None:
    seeds = [3, 4, 2**40]
    reference = evaluate(NoisyPolicy(), Walk, seeds, max_steps=5, keep_trajectories=True)
    assert same(reference, evaluate(NoisyPolicy(), Walk, seeds, max_steps=5, noise_seed=0, keep_trajectories=True))
    other = evaluate(NoisyPolicy(), Walk, seeds, max_steps=5, noise_seed=7, keep_trajectories=True)
    for seed in seeds:
        first, second = reference.trajectories[seed], other.trajectories[seed]
        np.testing.assert_array_equal(first["x"][0], second["x"][0])
        difference = plan_noise(seed ^ (7 << 32), 0, (6, 1))[1] - plan_noise(seed, 0, (6, 1))[1]
        np.testing.assert_allclose(second["action"][0] - first["action"][0], difference, atol=1e-6)
        assert abs(difference) > 1e-3


@pytest.mark.parametrize("latency", [0, 1, 2, 3])
def test_latency_agrees_with_a_plain_loop(latency: int) -> None:
    """Two steps are executed per plan: three steps of latency keep two plans under way."""
    policy, seeds = NoisyPolicy(), [6, 7, 10]
    result = evaluate(policy, Walk, seeds, num_envs=2, max_steps=6, latency_steps=latency, keep_trajectories=True)
    for episode in result.episodes:
        env, plans, rewards = Walk(), [], []
        seen = [env.reset(seed=episode.seed)[0]["x"].copy()]
        for step in range(episode.steps):
            if step % 2 == 0:
                window = np.stack([seen[max(step - 1, 0)], seen[step]])[None]
                plans.append(policy.act({"x": window}, noise=plan_noise(episode.seed, step // 2, (6, 1))[None])[0])
            newest = max(0, (step - latency) // 2)
            obs, reward, *_ = env.step(plans[newest][1 + step - 2 * newest])
            seen.append(obs["x"].copy())
            rewards.append(reward)
        env.close()
        np.testing.assert_array_equal(result.trajectories[episode.seed]["x"], seen[:-1])
        assert (episode.max_score, episode.final_score) == (max(rewards), rewards[-1])


def test_films_show_the_reset_and_every_step() -> None:
    result = evaluate(NoisyPolicy(), Walk, [0, 1, 2], num_envs=2, max_steps=50, video_seeds={2, 0})
    assert {seed: [int(frame[0, 0, 0]) for frame in film] for seed, film in result.frames.items()} == {
        0: [3, 2, 1, 0],
        2: [5, 4, 3, 2, 1, 0],
    }
    assert result.trajectories == {}


def test_progress_is_shown_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(NoisyPolicy(), Walk, [0, 1], max_steps=5)
    assert capfd.readouterr() == ("", "")
    evaluate(NoisyPolicy(), Walk, [0, 1], max_steps=5, progress=True)
    assert "2/2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 2, 1]}, "1 repetitions"),
        ({"seeds": [-1]}, "out of range|must lie in"),
        ({"video_seeds": [9]}, r"\[9\] are not"),
        ({"num_envs": 0}, "at least 1"),
        ({"max_steps": 0}, "at least 1"),
        ({"latency_steps": 4}, "latency_steps must lie between 0 and 3"),
        ({"noise_seed": -1}, "noise_seed must lie in"),
        ({"noise_seed": 2**32}, "noise_seed must lie in"),
        ({"policy": NoisyPolicy(dim=2)}, r"commands shape \(2,\); the environment takes shape \(1,\)"),
    ],
)
def test_bad_requests_are_refused(changes: dict[str, Any], words: str) -> None:
    request: dict[str, Any] = {"policy": NoisyPolicy(), "make_env": Walk, "seeds": [1, 2], "max_steps": 5}
    with pytest.raises(UserError, match=words):
        evaluate(**(request | changes))
    assert Walk.alive == 0


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (NoisyPolicy("image"), "sees 'image', but the environment gives only .'extra', 'x'."),
        (NoisyPolicy("extra", size=3), r"'extra' with shape \(3,\); the environment gives shape \(2,\)"),
    ],
)
def test_environments_that_do_not_fit_are_refused(policy: NoisyPolicy, words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        evaluate(policy, Walk, [1], max_steps=5)
    assert Walk.alive == 0


def test_plain_array_observations_are_refused() -> None:
    with pytest.raises(ObservationError, match=r"dictionary with the keys .'x'.; it gave ndarray"):
        evaluate(NoisyPolicy(), lambda: gymnasium.wrappers.FlattenObservation(Walk()), [1], max_steps=5)


def test_push_t_gives_identical_episodes_in_any_number_of_slots() -> None:
    policy = NoisyPolicy("agent_pos", size=2, dim=2, scale=120.0, centre=256.0)

    def play(num_envs: int) -> EvalResult:
        return evaluate(
            policy,
            lambda: gymnasium.make("drifting_policy.envs:drifting/PushT-v0"),
            range(9),
            num_envs=num_envs,
            max_steps=30,
            keep_trajectories=True,
        )

    reference = play(1)
    assert same(reference, play(4))
    assert same(reference, play(7))
    assert len({episode.max_score for episode in reference.episodes}) > 1
