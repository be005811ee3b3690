"""Alarms tell what is wrong, once; they are silent on healthy runs, early, and after a single bad validation."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from drifting_policy.training.alarms import Watch, find_alarms
from drifting_policy.training.logging import Log, read_alarms

# Measured on Push-T: the default drift run and the run of drift with one sample, after 12000 steps.
HEALTHY = {"val_action_error": 34.2, "data_mean_error": 124.5, "val_spread_to_data": 0.384, "val_spread_to_error": 0.489}
REGRESSION = HEALTHY | {"val_action_error": 35.6, "val_spread_to_data": 0.029, "val_spread_to_error": 0.034}
WIDE, FAR, WORSE = (
    {key: value} for key, value in (("val_spread_to_data", 2.1), ("val_action_error", 190), ("val_action_error", 69))
)


def rows(*figures: dict[str, Any], every: int = 1000) -> list[dict[str, Any]]:
    return [{"step": every * place, **HEALTHY, **row} for place, row in enumerate(figures, start=1)]


def found(*figures: dict[str, Any], every: int = 1000, stochastic: bool = True) -> dict[str, str]:
    return find_alarms(rows(*figures, every=every), first=500, stochastic=stochastic)


@pytest.mark.parametrize(
    ("figures", "name", "words"),
    [
        (REGRESSION, "collapsed", "deviate by only 2.9% of what demonstrations of similar observations do, and by 3.4%"),
        (WIDE, "diverged", "deviate 2.1 times as much as demonstrations of similar observations"),
        (FAR, "diverged", "held-out episodes, 190, is 1.5 times that of the mean demonstrated chunk"),
        (WORSE, "diverged", "held-out episodes, 69, is 2.0 times the lowest so far"),
        ({"val_action_error": None}, "diverged", "is not finite"),
        (REGRESSION | FAR, "diverged", "1.5 times"),
    ],
)
def test_what_is_wrong_twice_in_a_row_is_told(figures: dict[str, Any], name: str, words: str) -> None:
    (sentence,) = found({}, figures, figures).values()
    assert sentence.startswith(f"At step 3000 the policy has {name}: ")
    assert words in sentence
    assert "trainer.learning_rate" in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for silent in ([figures], [{}, figures], [figures, {}], [{}, figures, {}, figures], [figures, figures, {}]):
        assert not found(*silent)
    assert not found({}, figures, figures, every=166)  # steps 332 and 498
    assert bool(found({}, figures, figures, stochastic=False)) == (name == "diverged")


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"val_spread_to_data": 0.231, "val_spread_to_error": 0.303, "val_action_error": 33.0},  # per condition: the narrowest
        {"val_spread_to_data": 0.09},  # narrow beside similar demonstrations, but as wide as its error: little is left open
        {"val_spread_to_error": 0.09},  # too sure, but as wide as the data
        {"val_spread_to_data": 1.9},
        {"val_action_error": 68.0},
        {"val_spread_to_data": None, "val_spread_to_error": None},  # a single sample, or a single demonstration
    ],
)
def test_what_is_well_is_not_told(figures: dict[str, Any]) -> None:
    assert not found(*[HEALTHY | figures] * 4)
    assert not found({}, *[figures] * 4)


def test_a_slow_recovery_is_no_relapse() -> None:
    assert not found(*({"val_action_error": error} for error in (186, 150, 120, 80, 40, 34, 36)))
    assert found(*({"val_action_error": error} for error in (30, 40, 59, 61, 62)))
    assert found(*({"val_action_error": error} for error in (None, 30, 61, 62)))


def open_watch(run_dir: Path, *, start: int = 0, warmup_steps: int = 0) -> tuple[Log, Watch]:
    log = Log(run_dir, steps=9000, start=start, tensorboard=False)
    return log, Watch(log, warmup_steps=warmup_steps, stochastic=True)


def validate(run_dir: Path, steps: list[int], figures: dict[str, float], **options: int) -> None:
    log, watch = open_watch(run_dir, **options)
    with contextlib.closing(log):
        for step in steps:
            log.write(step, figures)
            watch.hear(step, figures)


def test_an_alarm_is_raised_once_however_often_the_run_is_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    validate(tmp_path, [1000, 2000, 3000], REGRESSION)
    printed = capfd.readouterr().err
    (alarm,) = read_alarms(tmp_path / "metrics.jsonl")
    assert (alarm["step"], alarm["alarm"]) == (2000, "collapsed")
    assert printed.count("warning: ") == printed.count(f"warning: {alarm['message']}\n") == 1
    validate(tmp_path, [4000, 5000], REGRESSION, start=3000)
    assert read_alarms(tmp_path / "metrics.jsonl") == [alarm]
    assert "warning" not in capfd.readouterr().err
    # Resumed from before the alarm, which its line then does not outlive, it is raised at the same step.
    validate(tmp_path, [2000, 3000], REGRESSION, start=1500)
    assert read_alarms(tmp_path / "metrics.jsonl") == [alarm]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1000, 2000, 2000, 3000]


def test_a_long_warmup_is_not_judged(tmp_path: Path) -> None:
    validate(tmp_path, [1000, 2000, 3000], REGRESSION, warmup_steps=2001)
    assert not read_alarms(tmp_path / "metrics.jsonl")
    validate(tmp_path, [4000], REGRESSION, start=3000, warmup_steps=2001)
    assert [alarm["step"] for alarm in read_alarms(tmp_path / "metrics.jsonl")] == [4000]
