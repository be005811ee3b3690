"""The benchmarks run as scripts, time what they say they time, and fail where a bar is missed."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from drifting_policy.models import MlpGenerator
from drifting_policy.objectives.drift import GROUPINGS
from drifting_policy.rollout.episode import Episode

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = {"drift_core": ["--generators", "mlp", "--batch", "4"], "act": ["--heads", "mlp"]}
TINY = {name: [*arguments, "--repetitions", "2", "--threads", "1"] for name, arguments in TINY.items()}


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module, which finds its sibling as it does when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


def answer(benchmark: ModuleType, times: dict[Any, list[float]], monkeypatch: pytest.MonkeyPatch, out: Path) -> tuple[int, Any]:
    """Exit code and record for these milliseconds in the place of measured ones."""
    monkeypatch.setattr(benchmark, "interleaved", lambda calls, **_: {name: times[name] for name in calls})
    code = benchmark.main([*TINY[benchmark.__name__], "--out", str(out)])
    return code, json.loads(out.read_text())


@pytest.mark.parametrize(("name", "rows"), [("drift_core", 3), ("act", 1)])
def test_a_script_prints_a_table_and_writes_its_record(name: str, rows: int, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / f"{name}.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), *TINY[name], "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    written = json.loads(out.read_text())
    assert written["benchmark"] == name
    assert (done.returncode, "missed" in done.stdout) == ((0, False) if written["met"] else (1, True))
    assert sum(line.startswith("mlp") for line in done.stdout.splitlines()) == len(written["rows"]) == rows
    assert written["machine"]["threads"] == 1
    assert written["versions"]["torch"] == torch.__version__
    for row in written["rows"]:
        assert row["repetitions"] == 2
        for spread in (value for key, value in row.items() if "spread" in key):
            assert 0 < spread["min"] <= spread["p25"] <= spread["p50"] <= spread["p75"] <= spread["p99"] <= spread["max"]


def test_workers_play_what_a_bare_simulator_plays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rollout, rounds = script("rollout", monkeypatch), {"bare": [100.0, 90.0], "alone": [200.0, 190.0]}
    tiny = ["--workers", "2", "--episodes", "1", "--steps", "12", "--repetitions", "2", "--out", str(tmp_path / "record.json")]
    for times, ratio in (([60.0, 40.0], 0.95), ([80.0, 70.0], 95 / 150)):
        monkeypatch.setattr(rollout, "interleaved", lambda calls, *, times=times, **_: rounds | {"workers": times})
        code = rollout.main(tiny)
        written = json.loads((tmp_path / "record.json").read_text())
        (row,) = written["rows"]
        assert row["ratio"] == pytest.approx(ratio)
        assert (row["steps"], row["episodes"], row["num_envs"]) == (24, 2, 2)
        assert row["bare_steps_per_s"] == pytest.approx(24 / 0.095)
        assert (code, written["met"]) == ((0, True) if ratio > 0.85 else (1, False))


def test_batches_are_held_against_a_copy_of_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = script("data", monkeypatch)
    arrived: dict[str, Any] = {}
    monkeypatch.setattr(data, "EPISODES", 4)

    def called(calls: Any, *, repetitions: int, warmup: int) -> dict[str, list[float]]:
        rounds = {name: [call() for _ in range(15)] for name, call in calls.items()}
        arrived.update({name: [each["image"].tobytes() for each in taken] for name, taken in rounds.items()})
        return {"batches": [10.0, 12.0], "gather": [8.8]}

    monkeypatch.setattr(data, "interleaved", called)
    code = data.main(["--batch", "64", "--repetitions", "2", "--threads", "1", "--out", str(tmp_path / "record.json")])
    written = json.loads((tmp_path / "record.json").read_text())
    (row,) = written["rows"]
    assert (code, written["met"], row["ratio"]) == (0, True, pytest.approx(0.8))
    assert row["gather_samples_per_s"] == pytest.approx(64 / 0.0088)
    assert row["batch_bytes"] == 64 * (2 * 96 * 96 * 3 + 2 * 2 * 4 + 16 * (2 * 4 + 1))
    epoch = len(set(arrived["gather"]))
    assert set(arrived["batches"][:epoch]) == set(arrived["gather"])  # an epoch later it is shuffled anew
    monkeypatch.setattr(data, "interleaved", lambda calls, **_: {"batches": [10.0], "gather": [7.9]})
    assert data.main(["--repetitions", "2", "--threads", "1", "--out", str(tmp_path / "record.json")]) == 1


def test_the_core_alone_is_the_one_in_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = script("drift_core", monkeypatch).prepare("mlp", batch_size=4)
    arrived: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, given: object, x: torch.Tensor) -> None:
        if isinstance(module, MlpGenerator):
            x.register_hook(arrived.append)

    with register_module_forward_hook(keep):
        for grouping in GROUPINGS:
            calls["step", grouping]()
            assert arrived[-1].shape == (4, 8, 16, 2)
            torch.testing.assert_close(calls["core", grouping](), arrived[-1])
    assert len(arrived) == 3
    assert not torch.allclose(arrived[0], arrived[1], rtol=0.1)


def test_every_step_is_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = script("drift_core", monkeypatch).prepare("mlp", batch_size=4)
    gradients = []
    for _ in range(2):
        calls["step", "chunk"]()
        gradients.append(calls["core", "chunk"]())
    assert not torch.equal(*gradients)


def test_act_is_the_network_in_raw_units(monkeypatch: pytest.MonkeyPatch) -> None:
    act = script("act", monkeypatch)
    policy = act.build_policy("transformer")
    calls = act.prepare(policy)
    chunk = policy.normalizer.unnormalize("action", calls["network"]().clamp(-1, 1))[:, 0]
    torch.testing.assert_close(torch.from_numpy(calls["act"]()), chunk)


def test_the_share_is_core_over_step_and_one_bad_grouping_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = script("drift_core", monkeypatch)
    times = {("step", grouping): [90.0, 100.0, 400.0] for grouping in GROUPINGS}
    times |= {("core", "chunk"): [1.0, 10.0, 99.0], ("core", "step"): [2.0, 5.0, 6.0], ("core", "dim"): [11.0] * 3}
    code, written = answer(benchmark, times, monkeypatch, tmp_path / "record.json")
    assert {row["grouping"]: row["share"] for row in written["rows"]} == pytest.approx(
        {"chunk": 0.1, "step": 0.05, "dim": 0.11}
    )
    assert (code, written["met"]) == (1, False)
    assert capsys.readouterr().out.count("The bar is missed: with mlp and grouping dim the core is 11.0% of a step") == 1
    assert answer(benchmark, times | {("core", "dim"): [9.0]}, monkeypatch, tmp_path / "record.json")[0] == 0


@pytest.mark.parametrize(("bars", "code"), [({"mlp": 1.3}, 1), ({"mlp": 1.5}, 0), ({"unet": 1.3}, 0)])
def test_the_ratio_is_act_over_network_and_only_heads_with_a_bar_can_miss_it(
    bars: dict[str, float], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    benchmark = script("act", monkeypatch)
    monkeypatch.setattr(benchmark, "BARS", bars)
    times = {"act": [2.0, 7.0, 12.0], "network": [4.0, 5.0, 90.0]}
    measured, written = answer(benchmark, times, monkeypatch, tmp_path / "record.json")
    assert (measured, written["met"]) == (code, not code)
    assert [(row["ratio"], row["bar"], row["act_p50_ms"]) for row in written["rows"]] == [(1.4, bars.get("mlp"), 7.0)]


def test_calls_take_turns_and_the_first_rounds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, log, clock = script("timing", monkeypatch), [], [0.0]

    def call(name: str) -> None:
        log.append(name)
        clock[0] += len(log)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    times = timing.interleaved({"a": lambda: call("a"), "b": lambda: call("b")}, repetitions=2, warmup=1)
    assert log == ["a", "b"] * 3
    assert times == {"a": [3000, 5000], "b": [4000, 6000]}


def test_a_comparison_that_declares_nothing_is_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = script("compare", monkeypatch)
    good, bad = (tuple(Episode(seed, score, score, score > 0.5, 1) for seed in range(9)) for score in (0.9, 0.1))
    cases = {(good, good): (0, 0), (good, bad): (1, 1), (bad, good): (1, 0)}
    for pair, counts in cases.items():
        found = [compare.share("case", [pair], better)[0]["declared"] for better in ({"a", "b"}, {"a"})]
        assert tuple(found) == counts
