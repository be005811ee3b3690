"""A run is found in every folder that a training or an evaluation leaves, and nothing of another run is mixed in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drifting_policy.checkpoint import list_checkpoints
from drifting_policy.reporting.record import Run, read_run
from drifting_policy.types import ConfigError


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_everything_is_read(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert run.missing == {}
    assert run.scores is not None
    assert (run.scores.folder, len(run.scores.episodes), run.scores.about["nfe"]) == (run_folder / "eval", 6, 1)
    assert [late.latency_steps for late in run.delays] == [0, 2]
    assert (run.settings["seed"], run.latency["counts"], run.curves["val_spread"][0][:2]) == (3, [5, 2], [1, 2])
    assert run.exhibits is not None
    assert [shown.episode["seed"] for shown in run.exhibits.shown] == [100, 101]


@pytest.mark.parametrize(
    ("values", "delays"),
    [
        ({}, [0, 2]),
        ({"step": 10}, [0]),
        ({"split": "validation"}, [0]),
        ({"sampler": {"name": "ddim"}}, [0]),
        ({"checkpoint": "elsewhere"}, [0]),
        ({"n": 5}, [0]),
        ({"latency_steps": 12}, [0, 12]),
    ],
)
def test_only_equal_worlds_make_a_curve(
    run_folder: Path, new_scores: Callable[..., Any], values: dict[str, Any], delays: list[int]
) -> None:
    (run_folder / "eval" / "latency_2" / "scores.json").write_text(json.dumps(new_scores(**{"latency_steps": 2, **values})))
    assert [late.latency_steps for late in read_run(run_folder).delays] == delays


def test_a_table_over_latency_leads_to_its_files(run_folder: Path) -> None:
    home = run_folder / "eval"
    for steps in (0, 10):
        shutil.copytree(home / "latency_2", home / f"latency_{steps}")
        change(home / f"latency_{steps}" / "scores.json", latency_steps=steps)
    (home / "scores.json").write_text(json.dumps({"rows": [{"latency_steps": 0}]}))
    for folder in (run_folder, home):
        run = read_run(folder)
        assert run.scores is not None
        assert run.scores.latency_steps == 0
        assert [late.latency_steps for late in run.delays] == [0, 2, 10]


def evaluated(run_dir: Path, copy: Path, home: Callable[[Path], Path], scores: Any) -> Run:
    """A true run, with made-up scores in one of the places where an evaluation puts them."""
    shutil.copytree(run_dir, copy)
    place = home(list_checkpoints(copy)[-1])
    place.mkdir(parents=True)
    (place / "scores.json").write_text(json.dumps(scores | {"checkpoint": str(copy)}))
    return read_run(place if place.parent != copy else copy)


@pytest.mark.parametrize(
    "home",
    [
        lambda checkpoint: checkpoint.parents[1] / "eval",
        lambda checkpoint: checkpoint / "eval",
        lambda checkpoint: checkpoint / "eval" / "latency_2",
        lambda checkpoint: checkpoint.parents[2] / "elsewhere",
    ],
)
def test_the_settings_are_those_of_the_checkpoint(
    run_dir: Path, tmp_path: Path, new_scores: Callable[..., Any], home: Callable[[Path], Path]
) -> None:
    run = evaluated(run_dir, tmp_path / "copy", home, new_scores())
    assert (run.settings["step"], run.settings["generator"]["width"]) == (20, 32)
    assert run.settings["policy"]["encoder"]["name"] == "state"
    assert "loss" in run.curves
    assert "settings" not in run.missing


def test_the_settings_of_another_step_are_not_taken(run_dir: Path, tmp_path: Path, new_scores: Callable[..., Any]) -> None:
    earlier = evaluated(run_dir, tmp_path / "a", lambda checkpoint: checkpoint.parents[1] / "eval", new_scores(step=10))
    assert earlier.settings["step"] == 10
    gone = evaluated(run_dir, tmp_path / "b", lambda checkpoint: checkpoint.parents[1] / "eval", new_scores(step=15))
    assert (gone.settings, "settings" in gone.missing) == ({}, True)


def test_the_policy_that_travels_with_the_package_is_known(run_folder: Path) -> None:
    for steps, known in ((12000, True), (11000, False)):
        change(run_folder / "eval" / "scores.json", checkpoint="bundled", step=steps)
        assert (read_run(run_folder / "eval").settings.get("task") == "push_t") == known


def test_a_training_without_scores_is_a_run(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.scores is None
    assert set(run.missing) == {"scores"}
    assert (run.settings["step"], "loss" in run.curves) == (20, True)


@pytest.mark.parametrize(
    "values", [{"episodes": []}, {"metrics": {}}, {"episodes": [{"seed": 1}]}, {"latency_steps": "x"}, {"episodes": None}]
)
def test_damaged_scores_are_named(run_folder: Path, values: dict[str, Any]) -> None:
    change(run_folder / "eval" / "scores.json", **values)
    with pytest.raises(ConfigError, match=r"scores\.json is damaged .*evaluate the checkpoint again|has no episodes"):
        read_run(run_folder)
