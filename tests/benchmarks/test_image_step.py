"""The benchmark of a full training step, at a size that a test has time for."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["generator.width=32", "generator.depth=1", "generator.heads=2", "generator.cond_dim=16", "generator.image_size=16"]


@pytest.fixture
def image_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("image_step")


def test_a_step_is_measured_and_its_operations_are_counted(image_step: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    given = ["--device", "cpu", "--tasks", "ablation", "--width", "4", "--repetitions", "1", "--out", str(out)]
    assert image_step.main([*given, *(f"task.{setting}" for setting in SMALL)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["labels"], row["labels_of_task"], row["precision"]) == (1, 64, "float32")
    assert row["images_per_second"] == pytest.approx(4 / row["step_s"], rel=1e-2)
    assert 0 < row["share_of_core"] < 2
    assert row["utilisation"] is None  # a rate is told of GPUs alone


def test_operations_of_a_convolution_and_its_gradient(image_step: ModuleType) -> None:
    """A backward pass to the images alone takes about as many operations as the forward pass."""
    from drifting_policy import cli
    from drifting_policy.imagenet.config import register

    register()
    task = cli.compose("imagenet.train", ["task=ablation", *(f"task.{setting}" for setting in SMALL)]).task
    once, twice = (image_step.count_operations(task, width=width) for width in (16, 32))
    assert 1.8 < once["features with gradient"] / once["features"] <= 2
    assert 3.5 < twice["features"] / once["features"] < 4  # all but the stem grows with the square of the width
    assert twice["generator"] == once["generator"]
