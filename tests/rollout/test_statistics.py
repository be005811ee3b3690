"""Intervals agree with closed forms and cover the truth; percentiles agree with sorting."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting_policy.rollout import statistics
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.statistics import (
    Latency,
    bootstrap_mean,
    cluster_bootstrap_mean,
    latency_histogram,
    latency_summary,
    summarize,
    wilson,
)


@given(n=st.integers(1, 500), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_inverts_the_score_test(n: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    interval = wilson(successes, n, confidence=confidence)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    z = {0.8: 1.2815515655446004, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}[confidence]
    for rate in {interval.low, interval.high} - {0.0, 1.0}:
        assert abs(interval.value - rate) / (rate * (1 - rate) / n) ** 0.5 == pytest.approx(z, rel=1e-6)
    mirrored = wilson(n - successes, n, confidence=confidence)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - interval.high, 1 - interval.low), abs=1e-12)


def test_wilson_of_published_examples() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for (successes, n), ends in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        interval = wilson(successes, n)
        assert (interval.low, interval.high) == pytest.approx(ends, abs=5e-5)


def test_bootstrap_agrees_with_enumeration() -> None:
    values = np.array([0.0, 1.0, 5.0, 6.5])
    means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    interval = bootstrap_mean(values, confidence=0.9, resamples=20_000)
    np.testing.assert_allclose(
        (interval.low, interval.high), np.percentile(means, [5, 95]), atol=0.26
    )  # one step of the lattice
    assert interval.value == values.mean()
    assert (interval.n, interval.confidence) == (4, 0.9)


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.exponential(size=50), confidence=0.8, resamples=300, seed=i) for i in range(300)]
    assert 0.72 < np.mean([interval.low <= 1 <= interval.high for interval in intervals]) < 0.86


def test_bootstrap_is_reproducible_and_equivariant() -> None:
    values = np.random.default_rng(0).random(30)
    interval = bootstrap_mean(values, resamples=500)
    assert interval == bootstrap_mean(values, resamples=500)
    assert interval != bootstrap_mean(values, resamples=500, seed=1)
    moved = bootstrap_mean(3 * values + 2, resamples=500)
    np.testing.assert_allclose((moved.low, moved.high), (3 * interval.low + 2, 3 * interval.high + 2))


@pytest.mark.parametrize(("runs", "episodes", "together"), [(1, 7, 2**18), (3, 20, 2**18), (3, 20, 150), (2, 5, 1)])
def test_resamples_drawn_together_are_those_drawn_one_by_one(
    runs: int, episodes: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", together)
    table = np.random.default_rng(3).random((runs, episodes))
    rng, plain, crossed = np.random.default_rng(5), [], []
    for _ in range(40):
        plain.append(table[0][rng.integers(episodes, size=episodes)].mean())
    rng = np.random.default_rng(5)
    for _ in range(40):
        crossed.append(table[rng.integers(runs, size=runs)][:, rng.integers(episodes, size=episodes)].mean())
    for interval, means in (
        (bootstrap_mean(table[0], resamples=40, seed=5), plain),
        (cluster_bootstrap_mean(list(table), resamples=40, seed=5), crossed),
    ):
        assert [interval.low, interval.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), rel=1e-14)  # sums' last bit


def test_cluster_bootstrap_of_one_run_is_the_plain_one() -> None:
    values = np.random.default_rng(0).random(50)
    plain = bootstrap_mean(values, resamples=4000)
    clustered = cluster_bootstrap_mean([values], resamples=4000)
    np.testing.assert_allclose(
        (clustered.value, clustered.low, clustered.high), (plain.value, plain.low, plain.high), atol=0.01
    )


def test_checkpoints_of_a_run_are_no_new_observations() -> None:
    scores = np.random.default_rng(0).random((3, 50))
    once = cluster_bootstrap_mean(list(scores), resamples=500)
    repeated = cluster_bootstrap_mean([np.tile(run, (5, 1)) for run in scores], resamples=500)
    np.testing.assert_allclose((repeated.low, repeated.high), (once.low, once.high))
    assert repeated.n == once.n == 150


def test_cluster_bootstrap_sees_both_sources_of_spread() -> None:
    rng = np.random.default_rng(0)
    runs, tests = rng.normal(size=(8, 1)), rng.normal(size=(1, 40))

    def width(table: np.ndarray) -> float:
        interval = cluster_bootstrap_mean(list(table), resamples=4000)
        return interval.high - interval.low

    expected = 2 * 1.96 * np.sqrt(runs.var() / 8)
    assert width(runs + np.zeros((1, 40))) == pytest.approx(expected, rel=0.1)
    # what is hard for all runs alike does not average out over runs
    assert width(tests + np.zeros((8, 1))) == pytest.approx(2 * 1.96 * np.sqrt(tests.var() / 40), rel=0.1)
    assert width(runs + tests) > max(width(runs + 0 * tests), width(0 * runs + tests))


def test_summary_names_three_measures() -> None:
    episodes = [Episode(seed=i, max_score=0.5 + 0.1 * i, final_score=0.1 * i, success=i == 3, steps=9) for i in range(4)]
    summary = summarize(iter(episodes))
    assert {name: interval.value for name, interval in summary.items()} == pytest.approx(
        {"max_score": 0.65, "final_score": 0.15, "success": 0.25}
    )
    assert summary["success"] == wilson(1, 4)
    assert {interval.n for interval in summary.values()} == {4}


def test_latency_leaves_out_the_warm_up() -> None:
    latency = latency_summary([9.0, *(i / 1000 for i in range(101))])
    assert (latency.p50_ms, latency.p99_ms, latency.max_ms, latency.n) == pytest.approx((50, 99, 100, 101))
    assert latency_summary([0.25]) == Latency(250.0, 250.0, 250.0, 1)


@given(times=st.lists(st.floats(0, 10), min_size=1, max_size=60), bins=st.integers(1, 9))
def test_the_histogram_counts_every_plan_once(times: list[float], bins: int) -> None:
    histogram = latency_histogram(times, bins=bins)
    edges, counts = histogram["edges_ms"], histogram["counts"]
    assert (len(edges), sum(counts)) == (bins + 1, latency_summary(times).n)
    assert 0 < edges[0] < edges[-1]
    ratios = np.diff(np.log(edges))
    assert ratios == pytest.approx(ratios.mean(), rel=0.05, abs=1e-4)


def test_the_histogram_leaves_out_the_warm_up() -> None:
    assert latency_histogram([9.0, 0.001, 0.002, 0.02, 0.1], bins=2) == {"edges_ms": [1.0, 10.0, 100.0], "counts": [2, 2]}


@pytest.mark.parametrize("values", [[], [np.nan, 1.0], [[1.0], [2.0]]])
def test_bad_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value, all finite"):
        bootstrap_mean(values)


def test_other_bad_input_is_refused() -> None:
    for successes, n in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match=f"got {successes} of {n}"):
            wilson(successes, n)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence=95.0)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_mean([1.0], confidence=1.0)
    with pytest.raises(ValueError, match=r"same test episodes; got \[2, 3\]"):
        cluster_bootstrap_mean([np.zeros(2), np.zeros(3)])
    with pytest.raises(ValueError, match="at least one run"):
        cluster_bootstrap_mean([])
    with pytest.raises(ValueError, match="at least one value"):
        latency_summary([])


def test_it_loads_without_a_simulator() -> None:
    code = "import sys, drifting_policy.rollout.statistics; sys.exit('gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
