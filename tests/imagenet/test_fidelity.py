"""Frechet distance and Inception score against other implementations, closed forms and what must hold for any features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance

from drifting_policy.imagenet.fidelity import (
    FeatureStatistics,
    bootstrap_interval,
    frechet_distance,
    inception_score,
    share_interval,
)
from drifting_policy.rollout.statistics import wilson


def features(seed: int, count: int = 200, width: int = 6) -> torch.Tensor:
    """Correlated, with a mean of their own."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    offset = torch.randn(width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + offset


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second))


def by_square_root(first: torch.Tensor, second: torch.Tensor) -> float:
    """The formula as it stands, with the matrix square root of scipy."""
    (m1, s1), (m2, s2) = ((x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in (first, second))
    return float(np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2)).real)


class Unchanged(torch.nn.Module):
    """The "images" are features already."""

    num_features = 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def by_torchmetrics(first: torch.Tensor, second: torch.Tensor) -> float:
    metric = FrechetInceptionDistance(feature=Unchanged(), normalize=True, input_img_size=(1, 1, 6))
    metric.set_dtype(torch.float64)
    for rows, real in ((first, True), (second, False)):
        metric.update(rows[:, None, None], real=real)
    return float(metric.compute())


@pytest.mark.parametrize("seed", range(3))
def test_other_implementations_find_the_same_distance(seed: int) -> None:
    first, second = features(seed), features(seed + 10, 150)
    found = distance(first, second)
    assert found == pytest.approx(by_square_root(first, second), rel=1e-9)
    assert found == pytest.approx(by_torchmetrics(first, second), rel=1e-9)
    assert found > 1


def test_statistics_are_those_of_numpy() -> None:
    rows = features(0)
    found = FeatureStatistics.of(rows.float())
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, rows.numpy().mean(0), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(rows.numpy(), rowvar=False), rtol=1e-5)


def test_the_distance_of_diagonal_normal_distributions() -> None:
    means, variances = torch.rand(2, 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)
    variances[0, 0] = 0.0
    first, second = (FeatureStatistics(None, m, v.diag()) for m, v in zip(means, variances, strict=True))
    expected = (means[0] - means[1]).square().sum() + (variances[0].sqrt() - variances[1].sqrt()).square().sum()
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-12)


@given(seed=st.integers(0, 1000), count=st.integers(2, 40), width=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_a_distance_is_zero_to_itself_symmetric_and_not_turned(seed: int, count: int, width: int) -> None:
    first, second = features(seed, count, width), features(seed + 1, 30, width)
    size = float(first.square().mean() + second.square().mean()) * width
    assert distance(first, first) <= 1e-12 * size
    assert distance(first, second) == pytest.approx(distance(second, first), abs=1e-11 * size)
    turn = torch.linalg.qr(features(seed + 2, width, width)).Q
    shift = torch.arange(width, dtype=torch.float64)
    assert distance(first @ turn + shift, second @ turn + shift) == pytest.approx(distance(first, second), abs=1e-7 * size)


@given(cuts=st.lists(st.integers(1, 49), min_size=1, max_size=6, unique=True).map(sorted))
@settings(max_examples=20, deadline=None)
def test_parts_merge_to_the_whole(cuts: list[int]) -> None:
    rows = features(3, 50) + 1000
    merged, *others = (FeatureStatistics.of(part) for part in rows.tensor_split(cuts))
    for other in others:
        merged = merged.merge(other)
    whole = FeatureStatistics.of(rows)
    assert merged.count == 50
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_what_is_no_statistic_is_refused() -> None:
    rows = features(0)
    rows[7, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 200 features hold NaN or infinity, first row 7"):
        FeatureStatistics.of(rows)
    with pytest.raises(ValueError, match="at least one feature"):
        FeatureStatistics.of(torch.zeros(0, 3))
    one, good = FeatureStatistics.of(features(1, 1)), FeatureStatistics.of(features(1))
    with pytest.raises(ValueError, match="at least two features"):
        frechet_distance(one, good)
    with pytest.raises(ValueError, match=r"other dimensions .* 6 and 5"):
        frechet_distance(good, FeatureStatistics.of(features(1, width=5)))
    with pytest.raises(ValueError, match="unknown number"):
        good.merge(FeatureStatistics(None, good.mean, good.covariance))
    with pytest.raises(ValueError, match="no covariance"):
        frechet_distance(good, FeatureStatistics(None, good.mean, -good.covariance))


def test_inception_scores_of_known_cases() -> None:
    certain = torch.eye(4).repeat(10, 1)  # every class alike, and no doubt about any
    assert inception_score(certain, splits=1) == (pytest.approx(4.0), 0.0)
    assert inception_score(torch.full((40, 4), 0.25), splits=4) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))
    assert inception_score(torch.eye(4)[[1]].repeat(40, 1), splits=4)[0] == pytest.approx(1.0)


def test_an_inception_score_is_a_loop_over_splits_in_any_order_of_the_classes() -> None:
    probabilities = features(0, 60, 5).softmax(1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    scores = []
    for rows in order.reshape(3, 20):
        part = probabilities[rows].numpy()
        scores.append(np.exp(np.mean([sum(p * np.log(p / q) for p, q in zip(row, part.mean(0), strict=True)) for row in part])))
    assert inception_score(probabilities, splits=3, seed=3) == (pytest.approx(np.mean(scores)), pytest.approx(np.std(scores)))
    in_order = torch.eye(10).repeat_interleave(100, 0)  # splits in the order of the file would find one class each
    assert inception_score(in_order)[0] > 9


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (torch.ones(20, 3), "add up to one"),
        (torch.eye(3), "in 10 splits .* got 3"),
        (torch.full((20, 1), torch.inf), "infinity"),
    ],
)
def test_what_has_no_inception_score_is_refused(probabilities: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inception_score(probabilities)


@pytest.mark.parametrize(("count", "total"), [(0, 7), (7, 7), (3, 50), (999, 1000)])
def test_intervals_of_shares_are_those_of_rollouts(count: int, total: int) -> None:
    expected = wilson(count, total, confidence=0.9)
    assert share_interval(count, total, confidence=0.9) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_is_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"got {count} of {total}"):
        share_interval(count, total)


def test_a_bootstrap_interval_has_the_width_of_repetitions() -> None:
    generator = torch.Generator().manual_seed(0)
    target = FeatureStatistics(None, torch.full((3,), 0.5).double(), torch.eye(3).double())

    def statistic(rows: torch.Tensor) -> float:
        return frechet_distance(FeatureStatistics.of(rows), target)

    def draw() -> torch.Tensor:
        return torch.randn(100, 3, generator=generator)

    repeated = np.array([statistic(draw()) for _ in range(200)])
    intervals = np.array([bootstrap_interval(statistic, draw(), resamples=60, seed=i) for i in range(30)])
    covered = (intervals[:, 0] <= repeated.mean()) & (repeated.mean() <= intervals[:, 1])
    assert covered.mean() > 0.8
    assert np.median(intervals[:, 1] - intervals[:, 0]) == pytest.approx(np.ptp(np.quantile(repeated, [0.025, 0.975])), rel=0.3)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval(statistic, draw(), confidence=1.0)
