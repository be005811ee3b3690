"""The certificate on a clock of its own: what is measured is what was spent."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drifting_policy import bench
from drifting_policy.certificate import drive, machine, made_up, report, write_certificate
from drifting_policy.control.latency import Histogram
from drifting_policy.types import ArraySpec, PolicySpec

SPEC = PolicySpec(
    observations={"image": ArraySpec((4, 4, 3), "uint8"), "pose": ArraySpec((3,))},
    action=ArraySpec((2,)),
    obs_horizon=2,
    pred_horizon=8,
    exec_horizon=4,
    control_hz=10.0,
)


class Slow:
    """A policy whose plans take the time that is on its list, over and over; and the clock that it moves."""

    spec, max_prefix = SPEC, 0

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.plans, self.now = seconds, 0, 0.0

    def act(self, obs: Mapping[str, np.ndarray], **_: Any) -> np.ndarray:
        self.now += self.seconds[self.plans % len(self.seconds)]
        self.plans += 1
        return np.zeros((len(obs["pose"]), 8, 2), np.float32)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def driven(policy: Slow, **options: Any) -> Any:
    return drive(policy, clock=policy.clock, sleep=policy.sleep, **options)


def test_a_quick_policy_holds_its_rate() -> None:
    policy, ticked = Slow(0.004), []
    timing = driven(policy, hz=100.0, cycles=20, progress=lambda: ticked.append(1))
    assert (timing.cycle.count, timing.inference.count, timing.jitter.count, timing.misses) == (20, 5, 19, 0)
    assert timing.inference.max == pytest.approx(0.004)
    assert timing.cycle.percentile(75) < 1e-5
    assert timing.cycle.percentile(76) == pytest.approx(0.004, rel=0.01)
    assert timing.jitter.max < 1e-9
    assert policy.now == pytest.approx(2 * 0.004 + 19 * 0.01)  # the warm-up, and all but the last period
    assert (len(ticked), timing.held) == (20, True)
    assert timing.verdict == "100 Hz was held: 0 of 20 cycles missed the deadline of 10 ms, and the longest took 4 ms."


def test_a_late_plan_is_a_miss_and_the_ticks_that_passed_are_left_out() -> None:
    timing = driven(Slow(0.025), hz=100.0, cycles=8)
    # Each plan, due at a tick, ends 2.5 periods later; the tick two periods on is late by half a period, but not missed.
    assert (timing.misses, timing.inference.count) == (2, 2)
    assert timing.cycle.max == pytest.approx(0.025)
    assert sorted({round(timing.cycle.percentile(q), 4) for q in (60.0, 80.0)}) == pytest.approx([1e-6, 0.025], abs=5e-3)
    assert timing.jitter.max == pytest.approx(0.015)
    assert "NOT held: 2 of 8 cycles" in timing.verdict
    assert "which allows 40 Hz" in timing.verdict


def test_the_certificate_says_on_what_it_was_measured(tmp_path: Path) -> None:
    timing = driven(Slow(0.004, 0.030), hz=50.0, cycles=40)
    certificate = write_certificate(tmp_path / "latency", timing, spec=SPEC, about={"threads": 1})
    written = json.loads((tmp_path / "latency" / "latency.json").read_text())
    assert written == json.loads(json.dumps(certificate))
    assert (written["contract_hash"], written["hz"], written["held"]) == (SPEC.contract_hash, 50.0, False)
    assert {"cpu", "cores", "governor", "kernel"} <= set(written["machine"])
    assert {"python", "numpy", "torch", "git"} <= set(written["versions"])
    assert Histogram.from_dict(written["histograms"]["cycle"]).percentile(99) * 1000 == pytest.approx(
        written["cycle_ms"]["p99"], abs=1e-4
    )
    assert {path.name for path in (tmp_path / "latency").iterdir()} <= {"latency.json", "latency.png"}
    told = report(written)
    assert told.startswith("50 Hz was NOT held")
    assert all(name in told for name in ("p99.9", "inference", "cycle", "jitter", machine()["kernel"]))


def test_observations_are_made_up_once_and_for_all() -> None:
    first, again = made_up(SPEC), made_up(SPEC)
    assert first[0]["image"].dtype == np.uint8
    assert first[0]["pose"].shape == (1, 3)
    assert all(np.array_equal(one[key], other[key]) for one, other in zip(first, again, strict=True) for key in one)
    assert not np.array_equal(first[0]["pose"], first[1]["pose"])


def test_bench_writes_a_certificate_beside_the_checkpoint(run_dir: Path, program: Callable[..., Any]) -> None:
    done = program("bench", f"ckpt={run_dir}", "hz=200", "cycles=20", "accelerate=true")
    assert done.code == 0
    assert "Hz was" in done.out
    (file,) = run_dir.glob("checkpoints/*/latency_accelerated/latency.json")
    written = json.loads(file.read_text())
    assert (written["cycles"], written["accelerated"], written["threads"]) == (20, True, 1)
    assert len(written["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([], "Say what to measure"),
        (["ckpt=nowhere"], "no checkpoint at nowhere"),
        (["ckpt=bundled", "hz=0"], "hz must lie between"),
        (["ckpt=bundled", "cycles=0"], "cycles must be at least 1"),
        (["ckpt=bundled", "dtype=int8"], "add accelerate=true"),
        (["ckpt=bundled", "dtype=int8", "accelerate=true"], "this one has none"),
        (["ckpt=policy.onnx", "accelerate=true"], "measured as it is"),
        (["ckpt=policy.onnx"], "policy.onnx cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(typed: list[str], words: str, program: Callable[..., Any]) -> None:
    assert words in program("bench", *typed).error


def test_an_interrupt_leaves_nothing_behind(
    run_dir: Path, program: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "drive", interrupted)
    assert program("bench", f"ckpt={run_dir}", f"out={tmp_path / 'out'}").code == 130
    assert not list(tmp_path.iterdir())
