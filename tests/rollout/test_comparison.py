"""Two policies on equal episodes: tests agree with enumeration, keep their level, and find what is there."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.statistics import Comparison, Interval, compare_episodes, compare_scores, compare_success

Pairs = tuple[np.ndarray, np.ndarray]


def enumerated_mid_p(only_a: int, only_b: int) -> float:
    """Share of all assignments of the discordant pairs that are further from balance, and half of those as far."""
    n = only_a + only_b
    gaps = [abs(2 * sum(signs) - n) for signs in itertools.product((0, 1), repeat=n)]
    observed = abs(only_a - only_b)
    # at perfect balance no assignment is nearer, and doubling the half of one side gives one
    return (
        1.0
        if observed == 0
        else sum(gap > observed for gap in gaps) / 2**n + sum(gap == observed for gap in gaps) / 2 ** (n + 1)
    )


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    rows = [(True, True)] * both + [(True, False)] * only_a + [(False, True)] * only_b + [(False, False)] * neither
    return [row[0] for row in rows], [row[1] for row in rows]


@given(both=st.integers(0, 9), only_a=st.integers(0, 6), only_b=st.integers(0, 6), neither=st.integers(2, 9))
def test_mcnemar_agrees_with_enumeration(both: int, only_a: int, only_b: int, neither: int) -> None:
    found = compare_success(*outcomes(both, only_a, only_b, neither))
    assert found.p == pytest.approx(enumerated_mid_p(only_a, only_b))
    assert found.difference.value == pytest.approx((only_a - only_b) / (both + only_a + only_b + neither))
    assert -1 <= found.difference.low < found.difference.high <= 1
    swapped = compare_success(*outcomes(both, only_b, only_a, neither))
    assert swapped.p == found.p
    assert (swapped.difference.low, swapped.difference.high) == pytest.approx((-found.difference.high, -found.difference.low))


def test_success_of_a_published_example() -> None:
    # Bentur et al. 2009 as in Fagerland, Lydersen, Laake 2013, table 2: 1, 1, 7, 12 of 21; exact 0.0703, mid-p 0.0391
    found = compare_success(*outcomes(1, 1, 7, 12))
    assert found.p == pytest.approx(0.0391, abs=5e-5)
    # Bonett, Price 2012 by hand: (2 - 8) / 23 -+ 1.96 * sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    assert (found.difference.low, found.difference.high) == pytest.approx((-0.5084, -0.0134), abs=5e-5)
    assert found.better == "b"


def test_sign_flips_agree_with_enumeration() -> None:
    differences = np.array([0.0, 0.3, 0.2, -0.1, 0.4, 0.25, 0.0, 0.15])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.array(sums) >= differences.sum() - 1e-12)
    assert compare_scores(differences, np.zeros(8), resamples=20_000).p == pytest.approx(exact, abs=0.006)


def correlated_outcomes(rng: np.random.Generator) -> Pairs:
    chance = rng.beta(2, 1, 100)  # an initial state is hard for both
    return rng.random(100) < chance, rng.random(100) < chance


def correlated_scores(rng: np.random.Generator) -> Pairs:
    ease = rng.beta(0.7, 0.4, 100)
    first, second = (rng.beta(4 * ease + 0.05, 4.05 - 4 * ease) for _ in range(2))
    return first, second


def mostly_perfect_scores(rng: np.random.Generator) -> Pairs:
    first, second = (np.where(rng.random(100) < 0.93, 1.0, rng.beta(1, 2, 100)) for _ in range(2))
    return first, second


def disasters_against_mediocrity(rng: np.random.Generator) -> Pairs:
    """Equal means, other shapes."""
    return np.where(rng.random(100) < 0.1, 0.0, 1.0), 0.9 + 0.05 * rng.normal(size=100)


@pytest.mark.parametrize(
    ("draw", "kind"),
    [
        (correlated_outcomes, "success"),
        (correlated_scores, "scores"),
        (mostly_perfect_scores, "scores"),
        (disasters_against_mediocrity, "scores"),
    ],
)
def test_without_a_difference_few_are_declared(draw: Callable[[np.random.Generator], Pairs], kind: str) -> None:
    rng, declared, repetitions = np.random.default_rng(0), {"a": 0, "b": 0, "": 0}, 1000
    for _ in range(repetitions):
        first, second = draw(rng)
        found = (
            compare_success(first.tolist(), second.tolist())
            if kind == "success"
            else compare_scores(first, second, resamples=200, seed=int(rng.integers(2**31)))
        )
        declared[found.better] += 1
    assert declared["a"] + declared["b"] <= 0.07 * repetitions
    assert min(declared["a"], declared["b"]) > 0


@pytest.mark.parametrize("seed", range(5))
def test_a_difference_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = correlated_scores(rng)
    assert compare_scores(first, np.clip(second + 0.25, 0, 1), resamples=999).better == "b"
    outcome, chance = rng.random(100) < 0.9, rng.random(100) < 0.6
    assert compare_success(outcome.tolist(), chance.tolist()).better == "a"


def test_certain_differences_survive_constants_and_outliers() -> None:
    one = np.ones(100)
    for first in (one, np.r_[one[1:], 0.0], one - np.r_[0.5, np.zeros(99)]):
        assert compare_scores(first, 0 * one, resamples=999).better == "a"
    assert compare_success([True] * 100, [False] * 100).better == "a"


def test_equal_policies_are_equal() -> None:
    scores = np.random.default_rng(0).random(20)
    found = compare_scores(scores, scores, resamples=99)
    assert (found.p, found.difference.low, found.difference.high, found.better) == (1.0, 0.0, 0.0, "")
    assert compare_success([True, False], [True, False]).p == 1.0


@pytest.mark.parametrize(
    ("low", "high", "p", "better"),
    [(0.1, 0.2, 0.01, "a"), (-0.2, -0.1, 0.05, "b"), (0.1, 0.2, 0.06, ""), (-0.1, 0.2, 0.01, ""), (0.0, 0.2, 0.01, "")],
)
def test_the_verdict_asks_test_and_interval(low: float, high: float, p: float, better: str) -> None:
    assert Comparison(Interval(0.0, low, high, 0.95, "any", 9), p, "any").better == better


def test_episodes_are_compared_metric_by_metric() -> None:
    a = [Episode(seed, 0.9 + 0.001 * seed, 0.1 * (seed % 3), True, 9) for seed in range(30)]
    b = [Episode(seed, 0.2, 0.1 * (seed % 3), False, 9) for seed in range(30)]
    found = compare_episodes(a, b, resamples=999)
    assert {name: comparison.better for name, comparison in found.items()} == {
        "max_score": "a",
        "final_score": "",
        "success": "a",
    }
    assert {name: comparison.better for name, comparison in compare_episodes(b, a, resamples=999).items()} == {
        "max_score": "b",
        "final_score": "",
        "success": "b",
    }
    with pytest.raises(ValueError, match="same seeds in the same order; got 30 and 29"):
        compare_episodes(a, b[:-1])
    with pytest.raises(ValueError, match="same seeds"):
        compare_episodes(a, b[::-1])


def test_bad_pairs_are_refused() -> None:
    for first, second in (([1.0], [0.5]), ([1.0, 0.5], [1.0]), ([1.0, np.nan], [1.0, 0.5])):
        with pytest.raises(ValueError, match="at least"):
            compare_scores(first, second)
    for outcome in ([True], [True, False, True]):
        with pytest.raises(ValueError, match="at least two pairs"):
            compare_success(outcome, [True, True][: max(1, len(outcome) - 1)])
