"""The benchmark of the control loop runs, and counts what it says it counts."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_short_loop_writes_its_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether it is fast enough is not for a test to say: the machine may be busy."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module, out = importlib.import_module("control_loop"), tmp_path / "loop.json"
    code = module.main(["--seconds", "0.3", "--beside", "nothing", "--inference", "thread", "--out", str(out)])
    result = json.loads(out.read_text())
    (row,) = result["rows"]
    assert code == 1 - result["met"]
    assert row["raised"] == row["unanswered"] == 0
    assert sum(row["statuses"].values()) == row["action"]["count"] > 0
    assert row["plans"] > 0
