"""What an evaluation leaves behind: whole files or the earlier ones, and scores that add up."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from drifting_policy import evaluation
from drifting_policy.cli import compose
from drifting_policy.config import TaskConfig
from drifting_policy.evaluation import check_contract, evaluate_policy, make_env, print_scores, score_table
from drifting_policy.policy import DriftingPolicy
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import EvalResult
from drifting_policy.types import CheckpointError, ConfigError, UserError


def make_task(name: str = "push_t") -> TaskConfig:
    task: TaskConfig = compose("train", [f"task={name}", "task.max_steps=8"]).task
    return task


def make_policy(task: TaskConfig) -> DriftingPolicy:
    mlp = {"name": "mlp", "width": 8, "depth": 1}
    return DriftingPolicy(task.spec, encoder={"name": "state", "embed_dim": 4}, generator=mlp).eval()


def judge(out: Path, **changes: Any) -> dict[str, Any]:
    request = {
        "split": "test",
        "episodes": 3,
        "num_envs": 2,
        "inference_batch": 1,
        "videos": 2,
        "out": out,
        "about": {"step": 5},
    }
    return evaluate_policy(make_policy(make_task()), make_task(), **(request | changes))


def test_all_results_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "eval"
    scores = judge(out)
    assert json.loads((out / "scores.json").read_text()) == scores
    assert {file.name for file in out.iterdir()} == {"scores.json", "latency.json", "episodes.mp4", "exhibits"}
    latency = json.loads((out / "latency.json").read_text())
    assert sum(latency["histogram"]["counts"]) == latency["n"]
    assert (scores["task"], scores["split"], scores["n_episodes"], scores["step"]) == ("push_t", "test", 3, 5)
    assert [episode["seed"] for episode in scores["episodes"]] == [100_000, 100_001, 100_002]
    mean = sum(episode["max_score"] for episode in scores["episodes"]) / 3
    assert scores["nfe"] == 1
    metric = scores["metrics"]["max_score"]
    assert metric["value"] == pytest.approx(mean)
    assert metric["low"] <= metric["value"] <= metric["high"]
    capsys.readouterr()
    print_scores(scores, out)
    told = capsys.readouterr().out
    assert f"max score    {mean:.3f}   95 % [{metric['low']:.3f}, {metric['high']:.3f}]" in told
    assert "plans, 1 network evaluation each)" in told


def test_without_videos_there_is_no_film(tmp_path: Path) -> None:
    judge(tmp_path, videos=0)
    assert {file.name for file in tmp_path.iterdir()} == {"scores.json", "latency.json"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episodes": 0}, "at least 1 is needed; asked for 0"),
        ({"episodes": -1}, "asked for -1"),
        ({"split": "train"}, "Unknown split 'train'; choose one of"),
        ({"num_envs": 0}, "num_envs and max_steps must be at least 1; got 0"),
        ({"inference_batch": 0}, "inference_batch must be at least 1; got 0"),
        ({"videos": -1}, "videos must be at least 0; got -1"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        judge(tmp_path / "out", **changes)
    assert isinstance(caught.value, UserError)
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_first_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(evaluation, "evaluate")
    (tmp_path / "taken").write_text("a file")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(ConfigError, match=r"cannot be written to .*; choose another out=DIR"):
            judge(out)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("full", ["scores.json", "latency.json", "episodes.mp4", "exhibits.json"])
def test_a_full_disk_leaves_the_earlier_scores_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    earlier = judge(tmp_path, episodes=2, videos=1)
    before = contents(tmp_path)
    write = Path.write_text

    def refuse(path: Path, text: str, *args: Any, **options: Any) -> int:
        if full in path.name:
            write(path, text[: len(text) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text, *args, **options)

    def no_film(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    if full == "episodes.mp4":
        monkeypatch.setattr(evaluation, "write_video", no_film)
    with pytest.raises(ConfigError, match="No space left on device"):
        judge(tmp_path)
    after = contents(tmp_path)
    assert set(after) == set(before)
    assert {path for path in after if after[path] == before[path]} >= {path for path in before if full in str(path)}
    assert {path for path in after if after[path] == before[path]} >= {path for path in before if "exhibits" in str(path)}
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == earlier or full != "scores.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred_horizon": 24}, "its pred_horizon is 24, the task's is 16"),
        ({"exec_horizon": 4}, "its exec_horizon is 4, the task's is 8"),
        ({"control_hz": 20.0}, "its control_hz is 20.0, the task's is 10.0"),
    ],
)
def test_every_part_of_the_contract_counts(change: dict[str, Any], words: str) -> None:
    task = make_task()
    check_contract(make_policy(task), task)
    with pytest.raises(CheckpointError, match=f"does not fit task push_t: {words}"):
        check_contract(make_policy(dataclasses.replace(task, **change)), task)


def test_a_policy_of_other_observations_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not fit task push_t_state: its observations"):
        check_contract(make_policy(make_task()), make_task("push_t_state"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: Any, **options: Any) -> None:
        raise ImportError("No module named 'pymunk'")

    monkeypatch.setattr(evaluation.gymnasium, "make", absent)
    with pytest.raises(ConfigError, match=r"pip install 'drifting-policy\[push_t\]' .*pymunk"):
        make_env(make_task())


def test_the_table_lists_every_episode() -> None:
    episodes = tuple(Episode(seed, 0.1 * seed, 0.0, seed > 1, 10) for seed in range(4))
    table = score_table(EvalResult(episodes, (), {}, {}), task=make_task(), split="validation")
    assert table["episodes"] == [dataclasses.asdict(episode) for episode in episodes]
    assert table["metrics"]["success"]["value"] == 0.5
    assert (table["split"], table["n_episodes"]) == ("validation", 4)
