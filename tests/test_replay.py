"""Demonstrations replay as they were made; other actions, or none that restore anything, are noticed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drifting_policy import replay
from drifting_policy.cli import compose
from drifting_policy.demonstrations import Demonstrations, load_demonstrations

Program = Callable[..., Any]


def table(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "replay.json").read_text())
    return values


@pytest.mark.parametrize("task", ["push_t", "push_t_state"])
def test_the_bundled_demonstrations_succeed_again(program: Program, tmp_path: Path, task: str) -> None:
    result = program("replay", f"task={task}", "episodes=6", f"out={tmp_path}")
    assert result.code == 0, result.err
    told = table(tmp_path)
    assert (told["task"], told["data"], told["n_episodes"], told["required_max_score"]) == (task, "bundled", 6, 0.99)
    assert told["metrics"]["success"]["value"] == told["max_score"]["min"] == 1.0
    assert told["deviation"]["state"]["max"] < 0.01
    assert told["largest"]["coverage"]["min"] >= 0.95
    assert [episode["seed"] for episode in told["episodes"]] == [*range(6)]
    assert "max score    mean 1.000, least 1.000   required 0.99" in result.out


def test_the_human_demonstrations_replay(
    program: Program, shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(shared / "data"))
    assert program("replay", "data=human", "episodes=40", f"out={tmp_path}").code == 0
    told = table(tmp_path)
    assert told["n_episodes"] == 40
    assert told["metrics"]["success"]["value"] == pytest.approx(0.05)
    assert told["max_score"]["mean"] == pytest.approx(0.948, abs=2e-3)
    assert (told["largest"]["coverage"]["mean"], told["largest"]["coverage"]["min"]) == pytest.approx((0.901, 0.869), abs=1e-3)
    assert told["deviation"]["state"]["max"] < 0.01


def altered(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Demonstrations]:
    def load(*arguments: Any, **options: Any) -> Demonstrations:
        found = load_demonstrations(*arguments, **options)
        return dataclasses.replace(found, **{name: change(getattr(found, name)) for name, change in changes.items()})

    return load


def test_actions_of_another_convention_fail(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relative = altered(action=lambda action: np.diff(action, axis=0, prepend=action[:1]))
    monkeypatch.setattr(replay, "load_demonstrations", relative)
    result = program("replay", "episodes=3", f"out={tmp_path}")
    assert result.code == 1
    (sentence,) = (line for line in result.err.splitlines() if line.startswith("failed: "))
    assert "when replayed, not 0.99; the simulator, the action convention or the data set of task push_t" in sentence
    assert table(tmp_path)["max_score"]["mean"] < 0.9


def test_data_of_ones_own_have_no_rate(program: Program, push_t_data: str, tmp_path: Path) -> None:
    result = program("replay", f"data={push_t_data}", f"out={tmp_path}", "task.max_steps=10")
    assert result.code == 0, result.err
    assert "no rate is stored for these data" in result.out
    assert {episode["steps"] for episode in table(tmp_path)["episodes"]} == {10}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["episodes=-1"], "episodes must be at least 0"),
        (["~task.restore.state"], "does not say what restores its environment"),
        (["data=nowhere"], "'nowhere' is neither a data set"),
        (["task.restore.state.source=stat"], "has no array data/stat"),
        (["task.restore.state.source=action"], "cannot begin as demonstration 0 did"),
        (["task.action.shape=[1]", "task.action.start=0"], "commands shape (1,); the environment takes shape (2,)"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(program: Program, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in program("replay", *arguments, f"out={tmp_path / 'out'}").error
    assert not (tmp_path / "out" / "replay.json").exists()


def test_states_are_loaded_only_where_asked_for() -> None:
    task = compose("train", ["task=push_t"]).task
    assert load_demonstrations(task, "bundled").states == {}
    found = load_demonstrations(task, "bundled", states=True)
    assert found.states["state"].shape == (len(found.action), 5)
    np.testing.assert_array_equal(found.states["state"][:, :2], found.observations["agent_pos"])
