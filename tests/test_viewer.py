"""The file for the Rerun viewer, with a stand-in for its package."""

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from robots import HZ, SPEC, Walker, drive

from drifting_policy.control.controller import Controller
from drifting_policy.control.inference import InlineInference
from drifting_policy.recorder import RunRecorder
from drifting_policy.run_log import open_log
from drifting_policy.types import MissingPackage
from drifting_policy.viewer import write_rerun


class Stream:
    """Keeps what it is told."""

    told: ClassVar[list[tuple[float, str, Any]]] = []

    def __init__(self, name: str) -> None:
        self.now = np.nan

    def save(self, path: str) -> None:
        """Where to."""
        Path(path).write_text("")

    def set_time(self, name: str, *, duration: float) -> None:
        """When."""
        self.now = duration

    def log(self, path: str, what: Any) -> None:
        """What."""
        self.told.append((self.now, path, what))

    def flush(self) -> None:
        """Done."""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    with RunRecorder(tmp_path / "run.zarr") as recorder:
        given: dict[str, Any] = {"exec_steps": 4, "deadline": 0.05, "clock": lambda: 0.0, "recorder": recorder}
        with Controller(InlineInference(Walker()), **given) as controller:
            drive(controller, 12, start=5)
    return tmp_path / "run.zarr"


def test_everything_is_shown_at_its_time(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.SimpleNamespace(RecordingStream=Stream, **dict.fromkeys(("Scalars", "LineStrips2D", "TextLog"), np.asarray))
    monkeypatch.setitem(sys.modules, "rerun", package)  # type: ignore[arg-type]
    monkeypatch.setattr(Stream, "told", [])
    log = open_log(recorded)
    target = write_rerun(log, recorded.with_name("run.rrd"))
    assert target.exists()
    actions = [(time, value) for time, path, value in Stream.told if path == "action"]
    np.testing.assert_allclose([time for time, _ in actions], np.arange(12) / HZ, atol=1e-9)
    assert np.array_equal([value for _, value in actions], log.streams["acted"]["action"])
    assert {path for _, path, _ in Stream.told} == {"observation/position", "action", "status", "plan", "inference_ms"}
    plan = next(value for _, path, value in Stream.told if path == "plan")
    assert np.shape(plan) == (2, SPEC.pred_horizon, 2)
    assert plan[0][:, 0].tolist() == list(range(-1, 11))


def test_without_rerun_a_sentence_says_how_to_get_it(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)  # type: ignore[arg-type]
    with pytest.raises(MissingPackage, match=r"drifting-policy\[viewer\]"):
        write_rerun(open_log(recorded), recorded.with_name("run.rrd"))
    assert not recorded.with_name("run.rrd").exists()
