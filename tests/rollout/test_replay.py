"""A replay scores recorded actions exactly as an evaluation scored them, and measures how far it strays."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.replay import replay
from drifting_policy.types import ArraySpec, DatasetError, ObservationError, PolicySpec


class Slope(gymnasium.Env[Any, np.ndarray]):
    """A point moves by the action and half its height; the reward is its height, success is above 2, and 5 ends it."""

    observation_space = spaces.Dict({"x": spaces.Box(-99, 99, (2,), np.float32)})
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.x = np.array([self.np_random.normal(), 7], np.float32)
        if options:
            if not options["x"].shape == (2,):
                raise ValueError("x must be two numbers.")
            self.x = options["x"].copy()
        return {"x": self.x}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.x[0] += action[0] + 0.5 * self.x[0]  # in place: who keeps observations must copy them
        height = float(self.x[0])
        return {"x": self.x}, height, height > 5, False, {"success": height > 2, "depth": -height, "steps": 3, "name": "slope"}


class Wanderer:
    """Commands its noise."""

    max_prefix = 0
    spec = PolicySpec({"x": ArraySpec((2,))}, ArraySpec((1,)), 1, 4, 4, 10.0)

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        assert noise is not None
        return noise


def test_a_replayed_policy_scores_as_it_was_evaluated() -> None:
    result = evaluate(Wanderer(), Slope, range(30), max_steps=12, keep_trajectories=True)
    assert {episode.success for episode in result.episodes} == {True, False}
    assert any(episode.steps < 12 for episode in result.episodes)
    for episode in result.episodes:
        seen = result.trajectories[episode.seed]
        played = replay(
            Slope(), seen["action"], number=episode.seed, options={"x": seen["x"][0]}, recorded={"x": seen["x"][:, :1]}
        )
        assert played.episode == replace(episode, boundary_acceleration=None, boundary_jerk=None)  # a replay has no plans
        assert played.deviation == {"x": 0.0}
        assert played.largest.keys() == {"depth"}


def test_a_stray_recording_is_measured() -> None:
    recorded = np.array([[1.0], [1.25], [2.5]])  # the truth: 1, 1.5, 2.25
    played = replay(Slope(), np.zeros((3, 1)), number=4, options={"x": np.array([1.0, 7.0])}, recorded={"x": recorded})
    assert played.deviation == {"x": 0.25}
    assert played.largest == {"depth": -1.5}
    assert played.episode == Episode(4, 3.375, 3.375, True, 3)


def test_the_end_of_the_environment_ends_it() -> None:
    played = replay(Slope(), np.ones((9, 1)), number=0, options={"x": np.zeros(2)}, recorded={"x": np.zeros((9, 1))})
    assert played.episode.steps == 4  # 1, 2.5, 4.75, 8.125
    assert played.deviation == {"x": 4.75}


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        ({"y": np.zeros((2, 1))}, r"'y' can be held against nothing: the environment gives ..x"),
        ({"x": np.zeros((2, 3))}, "gives 2"),
    ],
)
def test_what_cannot_be_compared_is_named(recorded: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        replay(Slope(), np.zeros((2, 1)), number=0, options={"x": np.zeros(2)}, recorded=recorded)


def test_a_state_that_is_refused_is_named() -> None:
    with pytest.raises(DatasetError, match="cannot begin as demonstration 3 did: x must be two numbers"):
        replay(Slope(), np.zeros((2, 1)), number=3, options={"x": np.zeros(3)}, recorded={})
