"""Exhibits show the episodes that were scored, and chunks as the policy draws them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from drifting_policy.chunking import plan_noise
from drifting_policy.cli import compose
from drifting_policy.config import TaskConfig
from drifting_policy.demonstrations import Demonstrations
from drifting_policy.evaluation import evaluate_policy, make_env
from drifting_policy.exhibits import FAN, WORST, choose, fan, nearest_chunk
from drifting_policy.policy import DriftingPolicy
from drifting_policy.reporting.gallery import read_exhibits
from drifting_policy.rollout.episode import Episode
from drifting_policy.types import ArraySpec, ConfigError, PolicySpec

SPEC = PolicySpec({"x": ArraySpec((3,))}, ArraySpec((2,), unit="m"), 3, 5, 2, 10.0)


class Echo:
    """A policy that answers with its noise and the oldest of what it sees."""

    max_prefix = 0
    spec = SPEC

    def __init__(self) -> None:
        self.seen: Mapping[str, np.ndarray] = {}

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        assert noise is not None
        self.seen = obs
        return noise + obs["x"][:, :1, :2]


def make_task() -> TaskConfig:
    task: TaskConfig = compose("train", ["task=push_t", "task.max_steps=8"]).task
    return task


def make_policy(task: TaskConfig) -> DriftingPolicy:
    mlp = {"name": "mlp", "width": 8, "depth": 1}
    return DriftingPolicy(task.spec, encoder={"name": "state", "embed_dim": 4}, generator=mlp).eval()


@given(scores=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_worst_the_median_and_the_best_are_chosen(scores: list[tuple[int, int]]) -> None:
    episodes = [Episode(seed, float(high), float(end), False, 1) for seed, (high, end) in enumerate(scores)]
    chosen = choose(episodes)
    ranked = [(e.max_score, e.final_score, e.seed) for e in chosen]
    assert ranked == sorted(set(ranked))
    left = [e for e in episodes if e not in chosen]
    assert all(e.max_score >= chosen[min(WORST, len(chosen)) - 1].max_score for e in left)
    assert all(e.max_score <= chosen[-1].max_score for e in left)
    below = sum(any((e.max_score, e.final_score, e.seed) < key for key in ranked[-2:-1]) for e in episodes)
    assert len(episodes) <= WORST + 2 or below == len(episodes) // 2


def test_exhibits_are_the_episodes_that_were_scored(tmp_path: Path) -> None:
    task = make_task()
    about: dict[str, Any] = {"step": 5}
    request: dict[str, Any] = {"split": "test", "episodes": 7, "inference_batch": 1, "videos": 1, "about": about}
    scores = evaluate_policy(make_policy(task), task, num_envs=3, out=tmp_path, latency_steps=2, **request)
    exhibits = read_exhibits(tmp_path / "exhibits")
    told = {episode["seed"]: episode for episode in scores["episodes"]}
    assert [dict(shown.episode) for shown in exhibits.shown] == [told[shown.episode["seed"]] for shown in exhibits.shown]
    assert len(exhibits.shown) == WORST + 1  # of seven, the fourth is the median
    assert exhibits.contract["picture"]["high"].tolist() == [512, 512]
    named = {file for shown in exhibits.shown for file in (shown.film, shown.end, *(fan.picture for fan in shown.fans))}
    assert named | {tmp_path / "exhibits" / "exhibits.json"} == set((tmp_path / "exhibits").iterdir())
    for shown in exhibits.shown:
        with av.open(str(shown.film)) as film:
            assert sum(1 for _ in film.decode(video=0)) == shown.episode["steps"] + 1
        assert [fan.step for fan in shown.fans] == [0, 4]
        assert all(fan.chunks.shape == (FAN, *task.spec.sample_shape) for fan in shown.fans)
        with Image.open(shown.fans[0].picture) as start, Image.open(shown.end) as end:
            assert start.size == end.size == (256, 256)
    before = {file: file.read_bytes() for file in named}
    evaluate_policy(make_policy(task), task, num_envs=1, out=tmp_path, latency_steps=2, **request)
    assert {path for path in (tmp_path / "exhibits").iterdir() if path.suffix != ".json"} == set(before)


def test_actions_of_push_t_lie_where_its_picture_shows_them() -> None:
    task = make_task()
    assert task.picture is not None
    env = make_env(task)
    for place in ((100.0, 400.0), (430.0, 60.0)):
        env.reset(seed=0, options={"state": np.array([*place, 256, 256, 0])})
        frame = np.asarray(env.render()).astype(int)
        agent = np.argwhere(np.abs(frame - [65, 105, 225]).sum(axis=2) < 40)[:, ::-1].mean(axis=0)  # royal blue
        low, high = np.array(task.picture.low), np.array(task.picture.high)
        assert (np.array(place) - low) / (high - low) * frame.shape[1::-1] == pytest.approx(agent, abs=1.5)
    env.close()


@pytest.mark.parametrize("corners", ["{low: [0, 0]}", "{low: [0, 0], high: [1, 0]}", "{low: [0, 0, 0], high: [1, 1, 1]}"])
def test_a_picture_has_two_corners(corners: str) -> None:
    with pytest.raises(ConfigError, match="two corners low and high that differ in x and y"):
        compose("train", ["task.picture.high=[]", f"task.picture={corners}"])
    assert compose("train", ["task.picture=null"]).task.picture is None


def test_a_fan_sees_what_the_executor_saw() -> None:
    policy = Echo()
    seen = {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "action": np.zeros((4, 2), np.float32)}
    for step, window in ((0, [0, 0, 0]), (1, [0, 0, 1]), (3, [1, 2, 3])):
        drawn = fan(policy, seen, seed=9, step=step, demonstrations=None)
        noise = plan_noise(9, step, (FAN, 5, 2)).astype(np.float64)
        assert set(policy.seen) == {"x"}
        assert (policy.seen["x"] == seen["x"][window]).all()
        assert np.array(drawn["chunks"]) == pytest.approx(noise + seen["x"][window[0], :2], abs=1e-3)
        apart = [np.linalg.norm(noise[i, t] - noise[:, t].mean(0)) for i in range(FAN) for t in range(5)]
        assert drawn["spread"] == pytest.approx(np.mean(apart), rel=1e-5)
        assert drawn["nearest"] is None
    json.dumps(drawn)


@given(seed=st.integers(0, 1000))
def test_the_nearest_demonstration_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(1, 6, 4))
    values = rng.normal(size=(ends[-1], 3)) * [1, 10, 100]
    action = rng.normal(size=(ends[-1], 2))
    obs = values[rng.integers(ends[-1])] + rng.normal(size=3) * [0.5, 5, 50]
    found = nearest_chunk(Demonstrations({"x": values}, action, ends), SPEC, {"x": obs})
    deviation = values.std(axis=0)
    nearest = min(range(ends[-1]), key=lambda i: sum(((values[i] - obs) / deviation) ** 2) if ends[-1] > 1 else 0)
    owner = next(episode for episode in range(4) if nearest < ends[episode])
    first, last = ([0, *ends][owner], ends[owner] - 1)
    expected = [action[min(max(nearest - SPEC.first_executed + t, first), last)] for t in range(5)]
    assert np.array_equal(found, np.stack(expected))
