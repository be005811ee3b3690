"""Precision, recall, density, coverage and nearest neighbours against loops over single features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.imagenet.neighbours import closer_share, compare_manifolds, distances, nearest, nearest_in_set


def cloud(seed: int, count: int, width: int = 3) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ball(rows: np.ndarray, i: int, k: int) -> float:
    return sorted(float(np.linalg.norm(rows[i] - other)) for j, other in enumerate(rows) if j != i)[k - 1]


def inside(point: np.ndarray, rows: np.ndarray, k: int) -> list[bool]:
    """Of which features' balls the point is in."""
    return [bool(np.linalg.norm(point - row) <= ball(rows, i, k)) for i, row in enumerate(rows)]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_manifolds_are_those_of_a_loop(chunk: int) -> None:
    samples, references = cloud(0, 23) + 0.7, cloud(1, 31)
    found = compare_manifolds(samples, references, precision_k=2, coverage_k=4, chunk=chunk)
    x, y = samples.numpy(), references.numpy()
    assert found.precision.tolist() == [any(inside(point, y, 2)) for point in x]
    assert found.recall.tolist() == [any(inside(point, x, 2)) for point in y]
    assert found.density.tolist() == [sum(inside(point, y, 4)) / 4 for point in x]
    assert found.coverage.tolist() == [any(np.linalg.norm(p - point) <= ball(y, i, 4) for p in x) for i, point in enumerate(y)]
    assert 0 < found.precision.double().mean() < 1
    assert 0 < found.coverage.double().mean() < 1


@given(seed=st.integers(0, 1000), count=st.integers(6, 30), width=st.integers(1, 5), offset=st.sampled_from([0.0, 1e3]))
@settings(max_examples=30, deadline=None)
def test_a_set_fills_its_own_manifold(seed: int, count: int, width: int, offset: float) -> None:
    rows = cloud(seed, count, width) + offset
    found = compare_manifolds(rows, rows)
    assert found.precision.all()
    assert found.recall.all()
    assert found.coverage.all()
    assert (found.density >= 1 / 5).all()


def test_copies_cover_what_they_copy_and_nothing_else() -> None:
    references = torch.cat([cloud(0, 20), cloud(1, 20) + 100])
    one = compare_manifolds(references[:1].repeat(10, 1), references)
    assert one.coverage[0]
    assert one.coverage.double().mean() < 0.5
    assert not one.coverage[20:].any()
    assert one.recall.tolist() == [True, *[False] * 39]  # balls around copies have no radius
    same = compare_manifolds(references, references[:1].repeat(10, 1))  # real images that are all one
    assert same.precision.tolist() == [True, *[False] * 39]
    assert same.coverage.all()


def test_a_far_set_is_neither_precise_nor_covering() -> None:
    found = compare_manifolds(cloud(0, 20) + 1000, cloud(1, 20))
    assert not found.precision.any() | found.recall.any() | found.coverage.any() | found.density.any()


@given(seed=st.integers(0, 1000), chunk=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_distances_and_neighbours_are_those_of_differences(seed: int, chunk: int) -> None:
    x, y = cloud(seed, 9) + 50, cloud(seed + 1, 7) + 50
    y[2] = x[4]
    apart = (x[:, None] - y).norm(dim=-1)
    torch.testing.assert_close(distances(x, y), apart, atol=1e-6, rtol=1e-9)
    assert distances(x, y)[4, 2] == 0
    torch.testing.assert_close(nearest(x, y, chunk=chunk), apart.amin(1), atol=1e-6, rtol=1e-9)
    own = (x[:, None] - x).norm(dim=-1).sort(1).values
    torch.testing.assert_close(nearest_in_set(x, k=3, chunk=chunk), own[:, 1:4], atol=1e-6, rtol=1e-9)


def test_copies_of_training_images_are_seen_and_fresh_images_are_not() -> None:
    training, unseen = cloud(0, 300), nearest(cloud(1, 300), cloud(0, 300))
    assert closer_share(nearest(cloud(2, 300), training), unseen) == pytest.approx(0.5, abs=0.07)
    assert closer_share(nearest(training + 1e-3, training), unseen) > 0.95
    assert closer_share(torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 0.5]).double()) == (1 + 0 + 0.5 + 0) / 4


def test_what_has_no_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 3 features; got 3"):
        compare_manifolds(cloud(0, 3), cloud(1, 20))
    with pytest.raises(ValueError, match="more than 5 features; got 5"):
        compare_manifolds(cloud(0, 20), cloud(1, 5))
    with pytest.raises(ValueError, match="NaN or infinity"):
        compare_manifolds(cloud(0, 20), cloud(1, 20) / 0)
    with pytest.raises(ValueError, match=r"dimensions .* 3 and 2"):
        distances(cloud(0, 20), cloud(0, 20, 2))
