"""The histogram of durations against NumPy's percentiles of the durations themselves."""

import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting_policy.control.latency import GROWTH, Histogram
from drifting_policy.types import ConfigError

DURATIONS = st.lists(st.floats(1e-6, 100.0), min_size=1, max_size=50)


def filled(durations: object) -> Histogram:
    histogram = Histogram()
    for seconds in np.asarray(durations, np.float64).tolist():
        histogram.record(seconds)
    return histogram


@given(DURATIONS, st.floats(0, 100))
def test_a_percentile_is_at_most_one_bin_above_the_exact_one(durations: list[float], q: float) -> None:
    histogram = filled(durations)
    exact = np.percentile(durations, q, method="inverted_cdf")
    # q/100 * n is rounded differently here and there: a neighbouring rank may answer where it is a whole number.
    ranks = {math.ceil(q / 100 * len(durations) + nudge) for nudge in (-1e-9, 1e-9)}
    candidates = [exact, *(sorted(durations)[min(max(rank, 1), len(durations)) - 1] for rank in ranks)]
    assert any(value * (1 - 1e-9) <= histogram.percentile(q) <= value * GROWTH * (1 + 1e-9) for value in candidates)


def test_the_usual_percentiles_of_many_durations() -> None:
    durations = np.random.default_rng(0).lognormal(-6, 1.0, 20_000)
    histogram = filled(durations)
    for q in (0, 1, 50, 95, 99, 99.9, 100):
        exact = np.percentile(durations, q, method="inverted_cdf")
        assert exact * (1 - 1e-9) <= histogram.percentile(q) <= 1.0100001 * exact
    assert histogram.max == histogram.percentile(100) == durations.max()
    assert histogram.count == 20_000
    summary = histogram.summary()
    assert summary["p50"] == pytest.approx(1000 * np.median(durations), rel=0.02)
    assert summary["max"] == pytest.approx(1000 * durations.max(), abs=1e-4)


def test_an_empty_one_knows_nothing() -> None:
    histogram = Histogram()
    assert histogram.count == 0
    assert math.isnan(histogram.percentile(50))
    assert math.isnan(histogram.max)
    assert set(histogram.summary().values()) == {None}
    with pytest.raises(ValueError, match="between 0 and 100"):
        histogram.percentile(101)


def test_what_lies_outside_counts_at_the_ends_and_the_longest_is_exact() -> None:
    histogram = Histogram(low=1e-3, high=1.0)
    for seconds in (-1.0, 0.0, -math.inf, 1e-9):
        histogram.record(seconds)
    assert histogram.percentile(100) == histogram.max == 1e-9
    for seconds in (5.0, 7.0, math.nan):
        histogram.record(seconds)
    assert (histogram.count, histogram.max, histogram.percentile(100)) == (7, 7.0, 1.0)
    histogram.record(math.inf)
    assert histogram.max == math.inf


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 1.0), (1e-3, math.inf), (math.nan, 1.0)])
def test_impossible_ends_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="0 < low < high"):
        Histogram(*ends)


@given(DURATIONS, DURATIONS)
def test_merged_is_recorded_together_and_survives_json(one: list[float], other: list[float]) -> None:
    merged = filled(one)
    merged.merge(filled(other))
    together = filled([*one, *other])
    assert merged.to_dict() == together.to_dict()
    copy = Histogram.from_dict(json.loads(json.dumps(merged.to_dict())))
    assert copy.to_dict() == merged.to_dict()
    assert (copy.count, copy.max, copy.percentile(95)) == (together.count, together.max, together.percentile(95))


def test_only_equal_ranges_merge() -> None:
    with pytest.raises(ValueError, match="different ends"):
        Histogram().merge(Histogram(high=1.0))


def test_recording_takes_no_memory() -> None:
    histogram, durations = Histogram(), np.random.default_rng(0).lognormal(-6, 1.0, 5000).tolist()
    histogram.record(1.0)
    size, blocks = sys.getsizeof(histogram._counts), sys.getallocatedblocks()
    for seconds in durations:
        histogram.record(seconds)
    assert sys.getallocatedblocks() - blocks < 500  # of 5000 records: the rest is that of other threads and type checks
    assert sys.getsizeof(histogram._counts) == size
