"""The benchmark of delays: every arm can be trained, every case can be played, and a row tells what was played."""

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from drifting_policy import cli
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import EvalResult
from drifting_policy.seams import Execution
from drifting_policy.trial import Trial

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PLANNED = {name: {"p50": 1.0, "p99": 40.0} for name in ("drift", "drift, prefix", "diffusion, DDIM 10")}


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("delays")


@pytest.mark.parametrize("typed", [[], ["--task", "conveyor", "--unet"], ["trainer.steps=5", "--delays", "0", "3"]])
def test_every_case_can_be_played_by_its_policy(delays: ModuleType, typed: list[str]) -> None:
    given = delays.parse(typed)
    suite = delays.make_suite(given)
    stubs: dict[str, Any] = {}
    for name, arm in suite.arms.items():
        config = cli.compose("train", [f"task={suite.task}", f"data={suite.data}", *arm.overrides, *suite.overrides])
        stubs[name] = SimpleNamespace(spec=config.task.spec, max_prefix=config.max_prefix, act=print)
    for case in delays.choose_cases(PLANNED, delays=given.delays, control_hz=50.0):
        Execution(case.seam, exec_horizon=given.exec_horizon).check(stubs[case.arm], case.delay)


def test_cases_are_arms_seams_and_delays_and_what_planning_takes(delays: ModuleType) -> None:
    cases = delays.choose_cases(PLANNED, delays=[0, 4], control_hz=50.0)
    assert len(cases) == len(set(cases)) == 7 * 2 + 1
    assert cases[-1] == delays.Case("diffusion, DDIM 10", "snap", 2, own=True)  # 40 ms at 50 Hz
    assert {case.seam for case in cases if case.arm == "drift, prefix"} == {"snap", "fade", "prefix"}


def made_up_trial(successes: list[bool], jerks: list[float | None]) -> Trial:
    pairs = enumerate(zip(successes, jerks, strict=True))
    episodes = tuple(Episode(seed, 0.5, 0.5, success, 9, 1.0, jerk) for seed, (success, jerk) in pairs)
    config = {name: {"name": name} for name in ("objective", "generator", "trainer")}
    config |= {"task": "push_t", "data": "human", "max_prefix": 8}  # type: ignore[dict-item]
    results = (EvalResult(episodes, (), {}, {}),)
    return Trial(Path("run"), (5,), "test", tuple(range(len(episodes))), results, config, {"name": "one_step"}, 1)


def test_a_row_tells_scores_with_intervals_and_jerks(delays: ModuleType, tmp_path: Path) -> None:
    trials = [made_up_trial([True, False], [3.0, None]), made_up_trial([True, True], [1.0, 2.0])]
    row = delays.make_row(delays.Case("diffusion, DDIM 10", "fade", 8), trials, PLANNED["drift"], exec_horizon=4)
    assert (row["success"], row["success_per_training_seed"], row["boundary_jerk"]) == (0.75, [0.5, 1.0], 2.0)
    assert row["success_low"] <= 0.75 <= row["success_high"]
    assert (row["arm"], row["seam"], row["latency_steps"], row["exec_horizon"]) == ("diffusion, DDIM 10", "fade", 8, 4)
    assert "fade    8 steps" in delays.tell(row)
    lines = [
        {"arm": arm, "seam": seam, "latency_steps": d} for arm, seams in delays.SEAMS.items() for seam in seams for d in (0, 8)
    ]
    rows = [row | line for line in lines]
    assert delays.draw(rows, tmp_path / "picture.png").stat().st_size > 10_000


def test_the_tables_hold_prefix_against_snap_and_leave_out_the_own_delay(delays: ModuleType) -> None:
    figures = {"success": 0.5, "success_low": 0.4, "success_high": 0.6, "max_score": 0.9, "boundary_acceleration": 1.0}
    rows = [
        {"arm": delays.PREFIX, "seam": seam, "latency_steps": delay, "own_delay": False, "boundary_jerk": jerk, **figures}
        for seam, delay, jerk in [("snap", 0, 2.0), ("prefix", 0, 2.0), ("snap", 4, 8.0), ("prefix", 4, 2.0)]
    ]
    rows.append({**rows[2], "own_delay": True, "success": 0.0})
    assert [(line["delay"], line["jerk"], line["acceleration"]) for line in delays.seams(rows)] == [
        (0, 1.0, 1.0),
        (4, 0.25, 1.0),
    ]
    assert delays.scores(rows)[0] == {
        "policy": delays.PREFIX,
        "seam": "snap",
        "delay_0": "0.50 / 0.90",
        "delay_4": "0.50 / 0.90",
    }


def test_every_seam_is_compared_with_snap_under_the_same_delay(delays: ModuleType) -> None:
    commit = importlib.import_module("commit")
    suite = delays.make_suite(delays.parse([]))
    spec = cli.compose("train", [f"task={suite.task}"]).task.spec
    policy: Any = SimpleNamespace(spec=spec, max_prefix=max(delays.DELAYS), act=print)
    rows = {}
    cases = commit.choose_cases([2, 0], ["prefix + 1", "prefix_fade"], ["held"])
    assert len(set(cases)) == len(cases) == 2 * 2 * 3  # snap and fresh noise are among them unasked
    for place, case in enumerate(cases):
        seam, delay, more, _ = case
        Execution(seam, exec_horizon=commit.EXEC_HORIZON, commit_steps=more).check(policy, delay)
        rows[case] = commit.row(case, [made_up_trial([True, False], [1.0 + place, None])] * 2)
    table = commit.compare(rows)
    assert [line["delay"] for line in table] == sorted(line["delay"] for line in table)
    for line in table:
        (case,) = [case for case, known in rows.items() if known is line["measured"]]
        seam, delay, more, held = case
        assert line["jerk"] == round(rows[case]["boundary_jerk"] / rows["snap", delay, 0, False]["boundary_jerk"], 2)
        assert line["noise"] == ("held" if held else "fresh")
        assert (line["seam"], line["committed"]) == (seam, "snap" if seam == "snap" else delay + more)
