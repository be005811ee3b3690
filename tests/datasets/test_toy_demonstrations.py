"""The bundled toy demonstrations are what their cards say, replay to success, and can be made again by their recipes."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from drifting_policy.data.download import array_sha256
from drifting_policy.data.replay_buffer import open_replay
from drifting_policy.datasets import mixture, obstacle
from drifting_policy.demonstrations import bundled, load_demonstrations
from drifting_policy.envs.mixture import cluster_of
from drifting_policy.envs.obstacle import LEFT, RADIUS, RIGHT, clearance, initial_state, passage
from drifting_policy.eval import load_task
from drifting_policy.replay import replay_demonstrations, summary

RECIPES: dict[str, Callable[[Sequence[str]], int]] = {"obstacle": obstacle.main, "mixture": mixture.main}


def card_of(file: Path) -> Any:
    """The card beside a data set."""
    return OmegaConf.to_object(OmegaConf.load(file.with_name(file.name.removesuffix(".zarr.zip") + ".yaml")))


@pytest.mark.parametrize("name", RECIPES)
def test_the_bundled_data_are_what_card_and_task_say(name: str) -> None:
    file = bundled(f"{name}.zarr.zip")
    card, buffer = card_of(file), open_replay(file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["file_sha256"]
    assert buffer.num_episodes == card["episodes"]
    assert {key: list(values.shape) for key, values in buffer.arrays.items()} == {
        key: array["shape"] for key, array in card["arrays"].items()
    }
    arrays = {**buffer.arrays, "episode_ends": buffer.episode_ends}
    assert {key: array_sha256(values) for key, values in arrays.items()} == card["array_sha256"]
    assert load_task(f"toy_{name}").data["bundled"].sha256 == card["array_sha256"]
    assert file.stat().st_size < 600_000


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_of_the_card_makes_the_same_bytes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bundled(f"{name}.zarr.zip")
    command = card_of(file)["command"].split()
    assert command[:3] == ["python", "-m", f"drifting_policy.datasets.{name}"]
    out = tmp_path / file.name
    assert RECIPES[name]([*command[3:], "--out", str(out)]) == 0
    assert str(card_of(file)["episodes"]) in capsys.readouterr().out
    assert out.read_bytes() == file.read_bytes()
    assert card_of(out)["command"].endswith(f"--out {out}")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("arguments", "words"), [(["--out", "demos.zarr"], "must end in .zarr.zip"), (["--seed", "-1"], "--seed")]
)
def test_mistakes_are_told(name: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert RECIPES[name](arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error


@pytest.mark.parametrize(("name", "success"), [("obstacle", 1.0), ("mixture", 0.985)])
def test_the_bundled_data_replay(name: str, success: float) -> None:
    task = load_task(f"toy_{name}")
    table = summary(replay_demonstrations(task, load_demonstrations(task, "bundled", states=True), episodes=200))
    assert table["metrics"]["success"]["value"] >= success
    assert all(deviation["max"] < 1e-6 for deviation in table["deviation"].values())
    assert task.data["bundled"].replay_score is not None


def test_demonstrations_go_either_way_from_states_that_never_repeat() -> None:
    buffer = open_replay(bundled("obstacle.zarr.zip"))
    episodes = [buffer.episode(number) for number in range(buffer.num_episodes)]
    states = np.stack([episode["state"][0] for episode in episodes])
    assert len(np.unique(states, axis=0)) == len(states)
    paths = np.stack([np.concatenate([episode["state"][:1, :2], episode["action"]]) for episode in episodes])
    sides = passage(paths, states[:, 2:4], states[:, 4:])
    assert set(sides.tolist()) == {LEFT, RIGHT}
    assert card_of(bundled("obstacle.zarr.zip"))["sides"] == {"left": (sides == LEFT).sum(), "right": (sides == RIGHT).sum()}
    assert abs((sides == LEFT).mean() - 0.5) < 0.05
    offset = (states[:, 4:] - (states[:, :2] + states[:, 2:4]) / 2)[:, 0]  # what an observer might guess the side from
    assert abs(np.corrcoef(offset, sides)[0, 1]) < 0.1
    assert clearance(paths, states[:, 4:]).min() > RADIUS + 0.03


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_the_expert_passes_where_it_is_told_and_leaves_the_gap(side: int) -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        state = initial_state(rng)
        targets = obstacle.detour(state, side=side, margin=0.1)
        path = np.concatenate([state[None, :2], targets])
        assert passage(path, state[2:4], state[4:]) == side
        assert clearance(path, state[4:]) == pytest.approx(RADIUS + 0.1, abs=0.03)
        np.testing.assert_allclose(targets[-1], state[2:4])


def test_the_card_counts_the_clusters() -> None:
    clusters = cluster_of(open_replay(bundled("mixture.zarr.zip")).arrays["action"].astype(np.float64))
    assert card_of(bundled("mixture.zarr.zip"))["clusters"] == np.bincount(clusters[clusters >= 0]).tolist()
