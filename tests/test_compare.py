"""A comparison plays equal episodes, says which policy is better, and refuses what cannot be compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drifting_policy import compare
from drifting_policy.cli import compose
from drifting_policy.rollout.statistics import Comparison, Interval

Program = Callable[..., Any]
SHORT = ("task=push_t", "task.max_steps=12", "episodes=4")


def table(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return values


def test_a_policy_equals_itself_and_differs_under_other_noise(program: Program, run_dir: Path, tmp_path: Path) -> None:
    result = program("compare", f"a={run_dir}", f"b={run_dir}", *SHORT, f"out={tmp_path / 'same'}")
    assert result.code == 0, result.err
    assert result.out.count("no difference at the 5 % level") == 3
    told = table(tmp_path / "same")
    assert told["a"]["episodes"] == told["b"]["episodes"]
    assert {metric["p"] for metric in told["metrics"].values()} == {1.0}
    arguments = (f"a={run_dir}", f"b={run_dir}", "noise_seed_b=1", *SHORT)
    assert program("compare", *arguments, f"out={tmp_path / 'noise'}").code == 0
    noisy = table(tmp_path / "noise")
    assert noisy["a"]["episodes"] == told["a"]["episodes"]
    assert noisy["b"]["episodes"] != told["b"]["episodes"]
    assert (noisy["split"], noisy["n_episodes"], noisy["b"]["noise_seed"], noisy["b"]["step"]) == ("validation", 4, 1, 20)
    assert [episode["seed"] for episode in noisy["b"]["episodes"]] == [200_000, 200_001, 200_002, 200_003]
    differences = [first["max_score"] - second["max_score"] for first, second in zip(*episodes_of(noisy), strict=True)]
    assert noisy["metrics"]["max_score"]["difference"]["value"] == pytest.approx(sum(differences) / 4)


def episodes_of(told: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return told["a"]["episodes"], told["b"]["episodes"]


def test_its_episodes_are_those_of_an_evaluation(program: Program, run_dir: Path, tmp_path: Path) -> None:
    assert program("compare", f"a={run_dir}", f"b={run_dir}", *SHORT, "num_envs=3", "workers=2", f"out={tmp_path}").code == 0
    assert program("eval", f"ckpt={run_dir}", *SHORT, "split=validation", "videos=0", f"out={tmp_path}").code == 0
    assert table(tmp_path)["a"]["episodes"] == json.loads((tmp_path / "scores.json").read_text())["episodes"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["b="], "Say what to compare: a=CKPT b=CKPT"),
        (["b=nowhere"], "There is no checkpoint at nowhere"),
        (["episodes=1"], "episodes of at least 2"),
        (["inference_batch=0"], "inference_batch of at least 1"),
        (["noise_seed_b=-1"], "noise_seed must lie in"),
        (["task=push_t_state"], "does not fit task push_t_state: its observations"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    program: Program, run_dir: Path, tmp_path: Path, changes: list[str], words: str
) -> None:
    given = {"a": str(run_dir), "b": str(run_dir), "out": str(tmp_path / "out"), "task": "push_t", "episodes": "2"}
    given |= dict(change.split("=") for change in changes)
    steps = ["task.max_steps=5"]
    assert words in program("compare", *(f"{key}={value}" for key, value in given.items()), *steps).error
    assert not (tmp_path / "out" / "compare.json").exists()


def test_episodes_of_other_worlds_are_not_compared(run_dir: Path) -> None:
    task = compose("train", ["task=push_t"]).task
    longer = compose("train", ["task=push_t", "task.max_steps=400"]).task
    candidates = [compare.load_candidate(str(run_dir), task=each, device="cpu") for each in (task, longer)]
    compare._check_one_world(candidates[0], candidates[0])
    with pytest.raises(compare.ConfigError, match="the max_steps of task push_t is 300, of push_t 400"):
        compare._check_one_world(*candidates)


def test_the_sentence_is_plain() -> None:
    found = Comparison(Interval(-0.2, -0.3, -0.1, 0.95, "any", 9), 0.01, "any")
    assert compare.sentence(found) == "b is better"
    assert compare.sentence(Comparison(found.difference, 0.2, "any")) == "no difference at the 5 % level"
