"""The recipe writes successes in equally frequent modes, the same with any number of workers; they replay bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from drifting_policy.data.replay_buffer import open_replay
from drifting_policy.datasets import block_push
from drifting_policy.demonstrations import load_demonstrations
from drifting_policy.envs.block_push import MODES, BlockPushEnv
from drifting_policy.envs.experts.block_push import Expert
from drifting_policy.eval import load_task
from drifting_policy.replay import replay_demonstrations, summary
from drifting_policy.types import DatasetError

EPISODES = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set where the task looks for it."""
    out = tmp_path_factory.mktemp("data") / "block_push" / "block_push_scripted.zarr.zip"
    assert block_push.main(["--episodes", str(EPISODES), "--seed", "3", "--out", str(out)]) == 0
    return out


def test_the_arrays_agree_with_each_other(made: Path) -> None:
    buffer = open_replay(made)
    assert {key: values.shape[1:] for key, values in buffer.arrays.items()} == {
        "obs": (16,),
        "action": (2,),
        "action_abs": (2,),
    }
    assert {values.dtype for values in buffer.arrays.values()} == {np.dtype("f4")}
    for number in range(EPISODES):
        obs, action, target = (buffer.episode(number)[key] for key in ("obs", "action", "action_abs"))
        np.testing.assert_array_equal(obs[1:, 8:10], target[:-1])
        np.testing.assert_allclose(obs[:, 8:10] + action, target, atol=1e-7)
        assert np.ptp(obs[:, 10:], axis=0).max() == 0  # the targets stay where they are
    assert len(np.unique(buffer.arrays["obs"][buffer.starts], axis=0)) == EPISODES


def test_they_replay_to_success_bit_for_bit(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(made.parents[1]))
    task = load_task("block_push")
    table = summary(replay_demonstrations(task, load_demonstrations(task, "scripted", states=True)))
    assert table["metrics"]["success"]["value"] == table["max_score"]["min"] == 1.0
    assert table["deviation"]["obs"]["max"] == 0.0
    lengths = [episode["steps"] for episode in table["episodes"]]
    assert lengths == open_replay(made).lengths.tolist()


def test_relative_actions_replay_as_exactly(made: Path) -> None:
    buffer, env = open_replay(made), BlockPushEnv(action="delta")
    for number in range(EPISODES):
        episode = buffer.episode(number)
        env.reset(options={"obs": episode["obs"][0]})
        results = [env.step(action) for action in episode["action"]]
        np.testing.assert_array_equal([result[0]["obs"] for result in results[:-1]], episode["obs"][1:])
        assert results[-1][4]["success"]


def test_workers_change_no_byte(made: Path, tmp_path: Path) -> None:
    out = tmp_path / made.name
    assert block_push.main(["--episodes", str(EPISODES), "--seed", "3", "--workers", "2", "--out", str(out)]) == 0
    assert out.read_bytes() == made.read_bytes()


def test_the_card_tells_modes_and_lengths(made: Path) -> None:
    card: Any = OmegaConf.to_object(OmegaConf.load(made.with_name("block_push_scripted.yaml")))
    assert sorted(card["modes"].values()) == [1, 1, 1, 2]
    assert set(card["modes"]) == set(block_push.NAMES)
    assert card["failures"] >= 0
    assert card["episode_steps"]["most"] == open_replay(made).lengths.max()
    assert card["command"].startswith("python -m drifting_policy.datasets.block_push --episodes 5")


@pytest.mark.parametrize("count", [1, 4, 1001])
def test_modes_are_balanced_and_in_random_order(count: int) -> None:
    modes = block_push.balanced_modes(count, seed=0)
    counts = np.bincount(modes, minlength=len(MODES))
    assert counts.sum() == count
    assert np.ptp(counts) <= 1
    assert count < 9 or modes != sorted(modes) != block_push.balanced_modes(count, seed=1)


def test_a_failure_is_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def play(env: BlockPushEnv, expert: Expert, *, seed: int) -> dict[str, np.ndarray]:
        seeds.append(seed)
        return {"obs": np.zeros((1, 16))} if len(seeds) == 3 else {}

    monkeypatch.setattr(block_push, "play", play)
    assert block_push.demonstrate(BlockPushEnv(), (0, 0, 0)).tries == 3
    assert len(set(seeds)) == 3


def test_an_expert_that_does_nothing_leaves_no_demonstration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Expert, "act", lambda self, obs: np.zeros(2))
    monkeypatch.setattr(block_push, "MAX_STEPS", 5)
    assert block_push.play(BlockPushEnv(action="absolute"), Expert(np.random.default_rng(0), 0), seed=0) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "demos.zarr", "--episodes", "1"], "must end in .zarr.zip"),
        (["--seed", "-1"], "--seed must be at least 0; got -1"),
        (["--episodes", "0"], "--episodes must be at least 1; got 0"),
        (["--workers", "0"], "--workers must be at least 1; got 0"),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert block_push.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_who_has_no_data_is_told_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(tmp_path))
    with pytest.raises(
        DatasetError, match=r"holds no block_push/.*zip\. Make it: python -m drifting_policy\.datasets\.block_push"
    ):
        load_demonstrations(load_task("block_push"), "scripted")


def test_the_published_demonstrations_load(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(shared / "data"))
    found = load_demonstrations(load_task("block_push"), "published", states=True)
    assert (found.action.shape, found.observations["obs"].shape, len(found.episode_ends)) == ((112340, 2), (112340, 16), 995)
    np.testing.assert_array_equal(found.states["obs"], found.observations["obs"])
