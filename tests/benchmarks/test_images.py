"""The study of the image generator: its rows and its bookkeeping, with commands that only pretend."""

import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drifting_policy import cli
from drifting_policy.imagenet.classifier import load_classifier
from drifting_policy.imagenet.config import register
from drifting_policy.imagenet.images import open_images

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("images")


@pytest.fixture
def study(images: Any) -> Any:
    """Two arms, two seeds."""
    arms = {name: images.ARMS[name] for name in (images.FULL, images.CONTROL)}
    return images.Study("digits", arms, seeds=2, samples=50, overrides=("task.trainer.steps=3",))


def result(images: Any, value: float) -> dict[str, Any]:
    """What an evaluation writes, as far as the study reads it."""
    metrics = {name: {"value": value + i} for i, name in enumerate(images.METRICS)}
    metrics["frechet_distance"]["between_training_and_unseen_images"] = 0.25
    return {"metrics": metrics, "extractor": {"name": "own"}, "step_seconds": value}


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_every_arm_is_a_training_of_its_own(images: Any, name: str) -> None:
    register()
    study = images.STUDIES[name]
    plain = cli.compose("imagenet.train", [f"task={study.data}", "task.encoder=somewhere"])
    for arm, overrides in study.arms.items():
        changed = cli.compose("imagenet.train", [f"task={study.data}", "task.encoder=somewhere", *overrides])
        assert (plain == changed) == (arm == images.FULL)
    assert cli.compose("imagenet.train", [f"task=mae_{study.data}"]).task.name == f"mae_{study.data}"
    assert len({images.folder(Path("home"), arm, seed) for arm in study.arms for seed in (0, 1)}) == 2 * len(study.arms)


def test_interval_is_students(images: Any) -> None:
    assert images.interval(np.array([0.5])) == (0.5, 0.5, 0.5)
    mean, low, high = images.interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, high - mean) == pytest.approx((2.0, 4.30265 / np.sqrt(3)), rel=1e-5)  # t of two degrees of freedom, by table
    assert mean - low == pytest.approx(high - mean)


def test_differences_are_paired_by_seed(images: Any, study: Any) -> None:
    found = {images.FULL: [1.0, 5.0], images.CONTROL: [0.5, 4.5]}
    runs = {name: [result(images, value) for value in values] for name, values in found.items()}
    rows = images.make_rows(study, runs)
    full, control, gap = rows
    assert [row["arm"] for row in rows] == [images.FULL, images.CONTROL, f"{images.FULL} - {images.CONTROL}"]
    assert full["of_their_class"].startswith("3.000 [")
    assert gap["of_their_class"] == "0.500 [0.500, 0.500]"
    assert gap["per_training_seed"]["coverage"] == [0.5, 0.5]
    assert control["step_seconds"] == 2.5
    assert {row["feature_distance_of_training_images"] for row in rows} == {0.25}
    json.dumps(rows)
    (single, _, _) = images.make_rows(study, {name: found[:1] for name, found in runs.items()})
    assert single["of_their_class"] == "1.000"  # one seed tells no interval


def test_finished_work_is_kept(images: Any, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Sequence[str]]] = []
    run = images.folder(tmp_path, images.CONTROL, 1)

    def pretend(command: str, settings: Sequence[str], *, log: Path) -> None:
        calls.append((command, settings))
        if command == "train":
            run.mkdir()
            (run / "metrics.jsonl").write_text('{"steps_per_second": 2.0}\n{"steps_per_second": 4.0}\n')
        else:
            (run / "judged_50").mkdir()
            (run / "judged_50" / "results_own.json").write_text(json.dumps(result(images, 1.0)))

    monkeypatch.setattr(images, "execute", pretend)
    for _ in range(2):
        found = images.measure(study, images.CONTROL, 1, home=tmp_path, encoder=tmp_path / "encoder", extractor="classifier")
        assert found["step_seconds"] == 0.375
        assert [command for command, _ in calls] == ["train", "evaluate"]
    _, settings = calls[0]
    assert {"seed=1", "resume=false", "task.trainer.steps=3"} <= set(settings)
    assert settings[-1] == "task.encoder=none"  # the arm has the last word, not the encoder of the study


def test_the_judge_is_trained_once(images: Any, study: Any, tmp_path: Path) -> None:
    assert images.train_judge(study, tmp_path / "judge") == "classifier"  # the default one of the data
    small = dataclasses.replace(study, judge=images.ClassifierOptions(width=2, epochs=1, flips=False))
    assert images.train_judge(small, tmp_path / "judge") == f"classifier:{tmp_path / 'judge'}"
    model, config = load_classifier(tmp_path / "judge")
    assert (model.feature_dim, config["test_images"]) == (8, len(open_images("digits", split="test")))
    written = (tmp_path / "judge" / "config.json").stat().st_mtime_ns
    images.train_judge(small, tmp_path / "judge")
    assert (tmp_path / "judge" / "config.json").stat().st_mtime_ns == written


def test_a_sheet_is_sorted_by_class(images: Any) -> None:
    sheet = np.full((8 * 5 + 7 * 2, 8 * 5 + 7 * 2), 255, np.uint8)
    for number in range(64):
        i, j = divmod(number, 8)
        sheet[i * 7 : i * 7 + 5, j * 7 : j * 7 + 5] = number
    found = images.by_class(sheet)
    assert found.shape == (6 * 7 - 2, 10 * 7 - 2)
    for corner in (0, 4):
        assert np.array_equal(found[corner::7, corner::7], np.arange(60).reshape(6, 10))
    assert (found[5::7] == 255).all()
