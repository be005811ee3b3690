"""The published protocol averages what was played, the selection never sees test episodes, and nothing is played twice."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drifting_policy import cli, protocol, train, trial
from drifting_policy.eval import load_task
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import EvalResult
from drifting_policy.rollout.metrics import labels
from drifting_policy.rollout.statistics import summarize
from drifting_policy.rows import result_row
from drifting_policy.trial import Trial, last_steps, play_trial
from drifting_policy.types import CheckpointError, ConfigError

Program = Callable[..., Any]
SHORT = ("task=push_t", "task.max_steps=8", "episodes=3", "select_episodes=4", "checkpoints=2", "select=1")


@pytest.fixture(scope="module")
def runs(push_t_data: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs of two checkpoints that differ in their seed, and one of another objective."""
    home = tmp_path_factory.mktemp("protocol")
    tiny = ["trainer=debug", "generator.width=16", "generator.depth=1", f"data={push_t_data}", "task.max_steps=8"]
    tiny += ["trainer.rehearse_resume=false", "trainer.eval_episodes=1", "trainer.eval_videos=0"]
    cases = {"seed0": ["seed=0"], "seed1": ["seed=1"], "other": ["seed=2", "objective=regression"]}
    for name, more in cases.items():
        assert train.run(cli.compose("train", [*tiny, *more, f"run_dir={home / name}"])) == 0
    return [home / name for name in cases]


def made_up(tables: np.ndarray, *, split: str = "test") -> Trial:
    """A trial whose scores of all three metrics are "c e"."""
    rows = [tuple(Episode(seed, score, score, score > 0.5, 3) for seed, score in enumerate(row)) for row in tables.tolist()]
    results = tuple(EvalResult(episodes, (0.1, 0.2), {}, {}) for episodes in rows)
    config = {"task": "push_t", "data": "human", "generator": {"name": "mlp"}, "objective": {"name": "drift"}, "trainer": {}}
    steps = tuple(100 * (i + 1) for i in range(len(tables)))
    return Trial(Path("run"), steps, split, tuple(range(tables.shape[1])), results, config, {"name": "one_step"}, 1)


def test_rows_are_the_means_of_what_was_played(program: Program, runs: list[Path], tmp_path: Path) -> None:
    result = program("protocol", f"runs=[{runs[0]},{runs[1]}]", *SHORT, f"out={tmp_path}")
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "protocol.json").read_text())
    assert [row["metric"] for row in rows[::2]][:3] == list(labels())
    task = replace(load_task("push_t"), max_steps=8)
    trials = [play_trial(run, task, steps=[10, 20], split="test", episodes=3) for run in runs[:2]]
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["n_training_seeds"], row["n_episodes"], row["split"]) == (2, 3, "test")
        assert row["value"] == pytest.approx(np.mean(row["per_training_seed"]), abs=2e-4)
        tables = [trial.tables[row["metric"]] for trial in trials]
        if row["protocol"].startswith("mean"):
            assert row["value"] == pytest.approx(np.mean(tables), abs=1e-4)
        elif row["protocol"].startswith("best of"):
            assert row["value"] == pytest.approx(np.mean([table.mean(1).max() for table in tables]), abs=1e-4)
            assert row["n_checkpoints"] == 1
        else:
            assert row["n_checkpoints"] == 1
            assert "4 validation episodes by max score" in row["protocol"]
    assert "best 1 of last 2" in result.out
    assert "mean of last 2" in result.out


def test_what_was_played_is_not_played_again(
    program: Program, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("protocol", f"runs=[{runs[0]},{runs[1]}]", *SHORT)
    assert program(*arguments, f"out={tmp_path / 'a'}").code == 0
    monkeypatch.setattr(trial, "play", lambda *args, **kwargs: pytest.fail("played again"))
    assert program(*arguments, f"out={tmp_path / 'b'}").code == 0
    first, second = ((tmp_path / name / "protocol.json").read_text() for name in "ab")
    assert first == second


def test_a_damaged_or_foreign_record_is_played_again(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(load_task("push_t"), max_steps=8)
    settings: dict[str, Any] = {"steps": [20], "split": "test", "episodes": 2}
    whole = play_trial(runs[0], task, **settings)
    played = []
    monkeypatch.setattr(trial, "play", lambda *args, real=trial.play, **kwargs: played.append(1) or real(*args, **kwargs))
    for file in (runs[0] / "checkpoints" / "step_00000020" / "trials").glob("*.json"):
        file.write_text(file.read_text()[:40])
    assert play_trial(runs[0], task, **settings).tables["max_score"].tolist() == whole.tables["max_score"].tolist()
    assert len(played) == 1
    play_trial(runs[0], replace(task, max_steps=7), **settings)  # another world is another record
    play_trial(runs[0], task, steps=[20], split="validation", episodes=2)
    assert len(played) == 3
    play_trial(runs[0], task, **settings)
    assert len(played) == 3


def test_the_selection_sees_validation_episodes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    test = made_up(np.array([[0.9, 0.9, 0.9], [0.1, 0.1, 0.1], [0.5, 0.6, 0.7]]))
    seen = []

    def play(run: Path, task: Any, *, split: str, **settings: Any) -> Trial:
        seen.append(split)
        return made_up(np.array([[0.1, 0.2, 0.3], [0.8, 0.8, 0.8], [0.0, 1.0, 0.9]]), split=split)

    monkeypatch.setattr(protocol, "play_trial", play)
    monkeypatch.setattr(protocol, "row", lambda name, metric, trials: {"metric": metric, "trial": trials[0]})
    rows = protocol.selected([test], load_task("push_t"), keep=1, metric="max_score", episodes=3)
    assert seen == ["validation"]
    assert [row["metric"] for row in rows] == list(labels())
    assert rows[0]["trial"].steps == (200,)  # the worst one on the test episodes
    assert rows[0]["trial"].tables["max_score"].tolist() == [[0.1, 0.1, 0.1]]


def test_the_lower_bound_decides_and_not_the_mean() -> None:
    steady, lucky = np.full(8, 0.60), np.array([1.0] * 5 + [0.0] * 3)
    judged = made_up(np.stack([lucky, steady, steady]))
    assert lucky.mean() > steady.mean()
    assert judged.lower_bounds("max_score") == [summarize(result.episodes)["max_score"].low for result in judged.results]
    assert protocol.best_steps(judged, "max_score", 1) == [300]  # among equals the later one
    assert protocol.best_steps(judged, "max_score", 2) == [200, 300]
    assert protocol.best_steps(judged, "max_score", 3) == [100, 200, 300]


def test_a_part_of_a_trial_keeps_its_rows() -> None:
    whole = made_up(np.arange(12).reshape(4, 3) / 20)
    part = protocol.part_of(whole, [200, 400])
    assert part.tables["max_score"].tolist() == whole.tables["max_score"][[1, 3]].tolist()
    assert part.steps == (200, 400)


def test_a_row_names_all_that_decided_it(runs: list[Path]) -> None:
    task = replace(load_task("push_t"), max_steps=8)
    found = play_trial(runs[0], task, steps=[20], split="test", episodes=2)
    interval = summarize(found.results[0].episodes)["success"]
    row = result_row("drift", "success", interval, [found], latency_ms={"p50": 1.23456, "p99": 2.0}, more=7)
    assert row["latency_ms"] == {"p50": 1.235, "p99": 2.0}
    assert (row["objective"], row["head"], row["nfe"], row["n_checkpoints"], row["more"]) == ("drift", "mlp", 1, 1, 7)
    assert row["train_seconds"] >= 0
    assert row["git"]["judged"] == row["versions"]["git"]
    other = play_trial(runs[0], task, steps=[20], split="test", episodes=1)
    again = result_row("drift", "success", interval, [other], latency_ms=None)
    assert again["config_hash"] == row["config_hash"]
    assert again["seeds_hash"] != row["seeds_hash"]


def test_an_unfinished_run_has_no_row(runs: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs[0], tmp_path / "copy"))
    (copy / "report.json").unlink()
    found = replace(made_up(np.ones((1, 2))), run=copy)
    with pytest.raises(CheckpointError, match=r"has no readable report.json; finish its training"):
        result_row("drift", "success", summarize(found.results[0].episodes)["success"], [found], latency_ms=None)


def test_too_few_checkpoints_are_refused(runs: list[Path]) -> None:
    assert last_steps(runs[0], 2) == [10, 20]
    with pytest.raises(CheckpointError, match="has 2 checkpoints, fewer than 3"):
        last_steps(runs[0], 3)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step \[15\]; it has \[10, 20\]"):
        play_trial(runs[0], load_task("push_t"), steps=[15], split="test", episodes=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["runs=[]"], "Say which runs belong together"),
        (["runs=[{0},{0}]"], "each once"),
        (["runs=[nowhere]"], "nowhere is no run"),
        (["runs=[{0},{2}]"], "its objective is"),
        (["select=3"], "select must lie between 0 and checkpoints=2"),
        (["select_by=luck"], "select_by must be one of"),
        (["episodes=0"], "episodes must be at least 1"),
        (["sampler.steps=3"], "has no setting"),
    ],
)
def test_mistakes_are_one_sentence(program: Program, runs: list[Path], changes: list[str], words: str, tmp_path: Path) -> None:
    given = [change.format(*runs) for change in changes]
    result = program("protocol", f"runs=[{runs[0]}]", *SHORT, f"out={tmp_path}", *given)
    assert words in result.error
    assert not (tmp_path / "protocol.json").exists()


def test_runs_of_one_seed_are_no_sample(runs: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs[0], tmp_path / "copy"))
    with pytest.raises(ConfigError, match=r"different training seeds; got \[0, 0\]"):
        protocol.run(cli.compose("protocol", [f"runs=[{runs[0]},{copy}]", *SHORT, f"out={tmp_path}"]))
