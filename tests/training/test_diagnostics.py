"""The diagnostics agree with plain loops, and with closed forms where samples and data have the same distribution."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from drifting_policy.training import diagnostics
from drifting_policy.training.diagnostics import (
    chunk_distances,
    coverage,
    data_figures,
    deviation,
    sample_figures,
    similar_rows,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(first: Tensor, second: Tensor) -> float:
    """Mean over steps of the Euclidean distance, one number at a time."""
    steps = [math.sqrt(sum(float(x - y) ** 2 for x, y in zip(a, b, strict=True))) for a, b in zip(first, second, strict=True)]
    return sum(steps) / len(steps)


@pytest.mark.parametrize("longest", [3, 4096])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_similar_rows_are_those_of_a_full_search(count: int, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "LONGEST_PIECE", longest)
    lengths = [5, 1, 7, 2, 3]
    episode, observations, queries = torch.tensor(np.repeat([3, 4, 9, 10, 11], lengths)), normal(18, 4), normal(6, 4, seed=1)
    places = torch.cat([torch.arange(n) // longest for n in lengths])
    for query, rows in zip(queries, similar_rows(queries, observations, episode, count=count), strict=True):
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for row in range(18):
            piece, here = (int(episode[row]), int(places[row])), (float((query - observations[row]).norm()), row)
            best[piece] = min(best.get(piece, here), here)
        assert rows.tolist() == [row for _, row in sorted(best.values())][:count]


def test_an_episode_is_heard_once() -> None:
    # Five copies of the query in one episode, and a distant demonstration: both are neighbours.
    observations = torch.tensor([[0.0], [0.0], [0.0], [0.0], [0.0], [9.0]])
    rows = similar_rows(torch.zeros(1, 1), observations, torch.tensor([0, 0, 0, 0, 0, 1]), count=8)
    assert rows.shape == (1, 2)
    assert rows[0, 1] == 5


@pytest.mark.parametrize("g", [2, 3, 8])
def test_the_deviation_does_not_depend_on_how_many_are_drawn(g: int) -> None:
    # Standard normal in d = 3 dimensions: the expected square is d whatever g.
    assert float(deviation(normal(4000, g, 5, 3))) == pytest.approx(math.sqrt(3), rel=0.02)
    pair = torch.tensor([0.0, 6.0, 0.0, 8.0]).reshape(1, 2, 1, 2)  # (0, 6) and (0, 8): unbiased variance 2
    assert float(deviation(pair)) == pytest.approx(math.sqrt(2))


def test_one_chunk_has_no_deviation() -> None:
    assert deviation(normal(4, 1, 5, 3)).isnan()
    figures = sample_figures(normal(4, 1, 5, 3), normal(4, 5, 3), normal(4, 8, 5, 3))
    assert {name for name, value in figures.items() if math.isnan(value)} == {"val_spread_to_data", "val_spread_to_error"}
    assert coverage(normal(4, 3, 5, 3), normal(4, 2, 5, 3)).isnan()


def test_distances_and_coverage_agree_with_plain_loops() -> None:
    samples, demonstrations = normal(4, 3, 5, 2), 0.8 * normal(4, 6, 5, 2, seed=1)
    between = chunk_distances(samples, demonstrations)
    covered = []
    for i in range(4):
        for k in range(6):
            assert [float(x) for x in between[i, :, k]] == pytest.approx(
                [distance(samples[i, g], demonstrations[i, k]) for g in range(3)]
            )
            others = sorted(distance(demonstrations[i, k], demonstrations[i, j]) for j in range(6) if j != k)
            covered.append(min(float(x) for x in between[i, :, k]) <= others[1])
    assert 0 < sum(covered) < len(covered)
    assert float(coverage(samples, demonstrations, neighbour=2)) == pytest.approx(np.mean(covered))


@pytest.mark.parametrize(("g", "neighbour"), [(1, 1), (1, 2), (3, 2), (8, 1), (8, 2), (8, 3)])
def test_coverage_of_equal_distributions_has_a_closed_form(g: int, neighbour: int) -> None:
    k, b = 8, 3000
    expected = 1 - math.prod((k - 1 - j) / (k + g - 1 - j) for j in range(neighbour))
    measured = float(coverage(normal(b, g, 2, 2), normal(b, k, 2, 2, seed=1), neighbour=neighbour))
    assert measured == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(b))  # as if each observation gave one coin
    if g == 1:
        assert expected == pytest.approx(neighbour / k)


def test_coverage_is_whole_for_copies_and_none_far_away() -> None:
    demonstrations = normal(5, 8, 4, 2)
    assert coverage(demonstrations.flip(1), demonstrations) == 1
    assert coverage(demonstrations + 100, demonstrations) == 0
    # Of two modes, samples of one cover one: the 4 demonstrations that stand there.
    two_modes = torch.cat([demonstrations[:, :4], demonstrations[:, 4:] + 100], dim=1)
    assert coverage(two_modes[:, :4], two_modes) == 0.5


def test_samples_like_the_data_have_figures_like_the_data() -> None:
    b, g, k = 4000, 8, 8
    samples, similar, demonstrated = normal(b, g, 4, 2), normal(b, k, 4, 2, seed=1), normal(b, 4, 2, seed=2)
    figures, data = sample_figures(samples, demonstrated, similar), data_figures(demonstrated, similar, torch.zeros(4, 2))
    assert figures["val_spread_to_data"] == pytest.approx(1, rel=0.03)
    assert figures["val_spread_to_error"] == pytest.approx(1, rel=0.03)
    nearest = data["data_nearest_demonstration"]
    assert (figures["val_nearest_demonstration"], figures["val_nearest_sample"]) == pytest.approx((nearest, nearest), rel=0.02)
    assert data["data_mean_error"] == pytest.approx(math.sqrt(math.pi / 2), rel=0.02)  # the mean of a Rayleigh distribution


def test_the_figures_tell_shrunken_and_stray_samples_apart() -> None:
    samples, demonstrated, similar = normal(50, 6, 4, 2), normal(50, 4, 2, seed=1), normal(50, 8, 4, 2, seed=2)
    mean = samples.mean(dim=1, keepdim=True)
    plain, narrow, wide = (sample_figures(mean + factor * (samples - mean), demonstrated, similar) for factor in (1, 0.01, 100))
    for name in ("val_spread_to_data", "val_spread_to_error"):
        assert (narrow[name], wide[name]) == pytest.approx((0.01 * plain[name], 100 * plain[name]))
    assert narrow["val_nearest_sample"] > plain["val_nearest_sample"]  # recall is lost
    assert narrow["val_coverage"] < plain["val_coverage"]
    assert wide["val_nearest_demonstration"] > 10 * plain["val_nearest_demonstration"]  # precision is lost
    assert wide["val_coverage"] == 0


def test_figures_are_lengths_or_ratios() -> None:
    samples, demonstrated, similar = normal(9, 3, 4, 2), normal(9, 4, 2, seed=1), normal(9, 5, 4, 2, seed=2)
    plain, scaled = (sample_figures(c * samples, c * demonstrated, c * similar) for c in (1, 7))
    for name, value in plain.items():
        assert scaled[name] == pytest.approx(value * (7 if "nearest" in name else 1)), name
    nearest = [min(distance(demonstrated[i], samples[i, j]) for j in range(3)) for i in range(9)]
    assert plain["val_nearest_sample"] == pytest.approx(np.mean(nearest))
    nearest = [min(distance(samples[i, j], similar[i, n]) for n in range(5)) for i in range(9) for j in range(3)]
    assert plain["val_nearest_demonstration"] == pytest.approx(np.mean(nearest))
    nearest = [min(distance(demonstrated[i], similar[i, n]) for n in range(5)) for i in range(9)]
    data = data_figures(demonstrated, similar, demonstrated.mean(dim=0))
    assert data["data_nearest_demonstration"] == pytest.approx(np.mean(nearest))
    assert data["data_mean_error"] == pytest.approx(np.mean([distance(x, demonstrated.mean(dim=0)) for x in demonstrated]))
