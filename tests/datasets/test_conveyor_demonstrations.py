"""The bundled demonstrations of the conveyor are what their card says, replay to success, and can be made again."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from drifting_policy.data.download import array_sha256
from drifting_policy.data.replay_buffer import ReplayBuffer, open_replay
from drifting_policy.datasets import conveyor
from drifting_policy.demonstrations import bundled, load_demonstrations
from drifting_policy.envs.conveyor import BELT, POST
from drifting_policy.eval import load_task
from drifting_policy.replay import replay_demonstrations, summary

FILE = bundled("conveyor.zarr.zip")


@pytest.fixture(scope="module")
def buffer() -> ReplayBuffer:
    return open_replay(FILE)


def card_of(file: Path) -> Any:
    """The card beside a data set."""
    return OmegaConf.to_object(OmegaConf.load(file.with_name(file.name.removesuffix(".zarr.zip") + ".yaml")))


def test_the_data_are_what_card_and_task_say(buffer: ReplayBuffer) -> None:
    card = card_of(FILE)
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == card["file_sha256"]
    assert FILE.stat().st_size < 1_500_000
    arrays = {**buffer.arrays, "episode_ends": buffer.episode_ends}
    assert {key: array_sha256(values) for key, values in arrays.items()} == card["array_sha256"]
    assert load_task("conveyor").data["bundled"].sha256 == card["array_sha256"]
    assert (buffer.num_episodes, sum(card["sides"].values())) == (card["episodes"], card["episodes"])
    delayed = list(card["success_of_the_expert_over_observation_delay"].values())
    assert delayed == sorted(delayed, reverse=True)
    assert delayed[0] > 0.95
    assert delayed[-1] < 0.1


def test_demonstrations_go_either_way_whatever_the_beginning(buffer: ReplayBuffer) -> None:
    sides, starts = [], []
    for number in range(buffer.num_episodes):
        state = buffer.episode(number)["state"]
        past = int(np.argmax(state[:, 5] >= POST[1]))  # the first step at which the block is behind the front of the post
        sides.append(state[past, 4] < POST[0])
        starts.append(state[0])
    assert sum(sides) == card_of(FILE)["sides"]["left"]
    assert 0.4 < np.mean(sides) < 0.6
    varied = [column for column in np.array(starts).T if np.ptp(column) > 1e-3]
    assert len(np.unique(np.array(starts), axis=0)) == buffer.num_episodes
    assert max(abs(np.corrcoef(column, sides)[0, 1]) for column in varied) < 0.15
    assert all(np.ptp(buffer.episode(0)["state"][:, BELT][:, :3], axis=0) == 0)


def test_the_demonstrations_succeed_again() -> None:
    task = load_task("conveyor")
    table = summary(replay_demonstrations(task, load_demonstrations(task, "bundled", states=True), episodes=40))
    assert table["max_score"]["mean"] >= (task.data["bundled"].replay_score or 1)
    assert table["deviation"]["state"]["median"] < 0.002


def test_the_recipe_makes_them_again(buffer: ReplayBuffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conveyor, "DELAYED_EPISODES", 1)
    files = [tmp_path / name / "few.zarr.zip" for name in ("one", "two")]
    for file in files:
        assert conveyor.main(["--episodes", "4", "--out", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    few = open_replay(files[0])
    assert few.episode_ends.tolist() == buffer.episode_ends[:4].tolist()
    for key, values in few.arrays.items():
        np.testing.assert_allclose(values, buffer.arrays[key][: few.num_steps], atol=1e-3)
    assert card_of(files[0])["attempts"] == 4


def test_another_seed_makes_others() -> None:
    one, other = (conveyor.demonstrations(1, seed=seed)[0].arrays["state"][0] for seed in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("arguments", [["--episodes", "0"], ["--seed", "-1"], ["--episodes", "1", "--out", "few.zip"]])
def test_mistakes_get_one_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conveyor, "DELAYED_EPISODES", 1)
    assert conveyor.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
