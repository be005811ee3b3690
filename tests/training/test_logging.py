"""metrics.jsonl holds every line once and is always readable, whatever killed the run before."""

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from drifting_policy.training.logging import Log
from drifting_policy.types import ConfigError


def lines(run_dir: Path) -> list[dict[str, Any]]:
    def no_json(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=no_json) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def open_log(run_dir: Path, *, start: int = 0, **options: Any) -> Log:
    return Log(run_dir, **{"steps": 100, "start": start, "tensorboard": False, "quiet": True} | options)


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.write(5, {"loss": 0.5, "count": 3})
    assert lines(tmp_path) == [{"step": 5, "loss": 0.5, "count": 3}]
    log.write(6, {"loss": math.nan, "norm": math.inf, "fine": 1.0})
    assert lines(tmp_path)[1] == {"step": 6, "loss": None, "norm": None, "fine": 1.0}
    log.close()


@pytest.mark.parametrize("torn", ['{"step": 15, "lo', "", "7", "[1]", '{"loss": 1}', "\0\0\0", "\udcff"])
def test_a_resumed_log_drops_later_and_torn_lines(tmp_path: Path, torn: str) -> None:
    written = [{"step": step, "loss": 0.1 * step} for step in (5, 10, 10, 15)]
    text = "".join(json.dumps(line) + "\n" for line in written) + torn
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    log = open_log(tmp_path, start=10)
    assert lines(tmp_path) == written[:3]
    log.write(12, {"loss": 2.0})
    log.close()
    assert lines(tmp_path) == [*written[:3], {"step": 12, "loss": 2.0}]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_bar_stands_where_the_run_stands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = open_log(tmp_path, start=40, quiet=False)
    log.write(41, {"loss": 0.1234567, "learning_rate": 0.5, "drift_rms_0.2": 7.0})
    log.advance(100)
    log.close()
    shown = capfd.readouterr().err
    assert "40/100" in shown
    assert "100/100" in shown
    assert "loss=0.123" in shown
    assert "drift=7" in shown
    assert "learning_rate" not in shown


def test_tensorboard_gets_every_metric(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TensorBoard's own
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        log = open_log(tmp_path, tensorboard=True)
        log.write(5, {"loss": 0.5, "norm": 2.0})
        log.write(6, {"loss": 0.25})
        log.close()
        board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
        board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(5, 0.5), (6, 0.25)]
    assert [(event.step, event.value) for event in board.Scalars("norm")] == [(5, 2.0)]


def test_without_tensorboard_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'drifting-policy\[tensorboard\]'"):
        open_log(tmp_path, tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    log = Log(tmp_path, steps=2, start=0, tensorboard=False, quiet=True)
    log.stream.close()
    log.stream = open("/dev/full", "a")  # noqa: SIM115 (the log closes it)
    with pytest.raises(ConfigError, match=r"metrics.jsonl could not be written .*resume=true"):
        log.write(1, {"loss": 1.0})
    log.close()
