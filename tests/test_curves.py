"""Curves hold every logged number once, and the picture shows them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drifting_policy.curves import PANELS, draw_curves, read_curves, shown_names, training_seconds
from drifting_policy.types import ConfigError


def run_with(folder: Path, rows: list[dict[str, float | None]]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_number_is_read_once(tmp_path: Path) -> None:
    run_with(tmp_path, [{"step": 5, "loss": 2.0}, {"step": 10, "loss": None, "val_spread": 1.0}, {"step": 10, "loss": 3.0}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "alarm": "collapsed", "message": "At step 10 ..."}\n')
    assert read_curves(tmp_path / "metrics.jsonl") == {"loss": ([5, 10], [2.0, 3.0]), "val_spread": ([10], [1.0])}


def test_the_picture_changes_with_the_numbers(tmp_path: Path) -> None:
    pictures = []
    for scale in (1.0, 3.0):
        rows: list[dict[str, float | None]] = [
            {"step": i, "loss": 7.0, "sample_error": scale / i, "drift_rms_0.2": 0.1 * i} for i in range(1, 50)
        ]
        with Image.open(draw_curves(run_with(tmp_path, rows))) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


@pytest.mark.parametrize("name", ["val_spread", "val_spread_to_data", "val_nearest_sample", "data_nearest_demonstration"])
def test_each_figure_stands_in_one_panel(name: str) -> None:
    assert len([title for title, _, wanted in PANELS if shown_names([name, "data_mean_error"], wanted) == [name]]) == 1


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"drifting-policy\[plot\]"):
        draw_curves(run_with(tmp_path, [{"step": 1, "loss": 1.0}]))


def test_time_adds_up_over_all_starts(tmp_path: Path) -> None:
    rows: list[dict[str, float | None]] = [{"step": 50, "steps_per_second": 10.0}, {"step": 100, "steps_per_second": 25.0}]
    assert training_seconds(run_with(tmp_path, rows) / "metrics.jsonl") == pytest.approx(5 + 2)
    assert training_seconds(run_with(tmp_path, [{"step": 10, "loss": 1.0}]) / "metrics.jsonl") == 0
