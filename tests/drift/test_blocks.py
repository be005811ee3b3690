"""The field in blocks where arithmetic is near its limits; that it is the field at all, test_field.py tells."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from reference_field import assert_close, loop_field, normal, samples

from drifting_policy.drift import blocks
from drifting_policy.drift.blocks import distances, field_in_blocks, split
from drifting_policy.drift.definitions import FieldOptions
from drifting_policy.drift.workspace import Workspace

USUAL: dict[str, Any] = {
    **{"temperatures": (0.02, 0.05, 0.2), "kernel": "laplace", "coupling": "row_column", "scale": "batch", "force": "batch"},
    **{"affinity_floor": 1e-6, "self_mask": True, "attraction": 1.0, "repulsion": 1.0},
}


@pytest.mark.parametrize("options", [{}, {"affinity_floor": 1e-12}, {"kernel": "gaussian"}, {"temperatures": (0.005, 1.0)}])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("collapsed", [False, True])
def test_blocks_in_float32_stay_exact_where_one_sample_is_far_from_all(
    options: dict[str, Any], spread: float, collapsed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether one exponential serves both softmaxes, or the distances differ too much for that."""
    x, pos, neg = (values.round(decimals=3) for values in samples(2, 5, 4, 2, 3))
    x = x * 1e-3 if collapsed else x
    x[0, 0, 0] += spread
    pos[0, 0] = x[0, 0] + 0.01  # which a target may be near to
    chosen = USUAL | options
    parts = x.float()[:, :, None], neg.float()[:, :, None], pos.float()[:, :, None]
    expected = loop_field(
        *(part[:, :, 0].double().numpy() for part in (parts[0], parts[2], parts[1])), np.ones((2, 11)), chosen
    )
    found = field_in_blocks(parts, None, FieldOptions(**chosen), Workspace())
    assert_close(found.velocity.double(), torch.from_numpy(expected["velocity"]), 2e-4)
    monkeypatch.setattr(blocks, "KEPT_NUMBERS", 0)
    again = field_in_blocks(parts, None, FieldOptions(**chosen), Workspace(), block_numbers=1)
    assert_close(again.velocity, found.velocity, 1e-4)


def test_one_exponential_serves_both_softmaxes_where_distances_are_alike() -> None:
    cost, slope = 1 + 0.1 * normal(3, 5, 9).abs(), torch.tensor([-5.0, -50.0]).view(1, 2, 1, 1)
    assert blocks.near(cost, slope)
    cost[1, 2] += 1
    assert not blocks.near(cost, slope)


@pytest.mark.parametrize("coordinates", [64, 65, 600])
def test_blocks_measure_the_distances_of_points_with_many_coordinates(coordinates: int) -> None:
    """Up to 64 they are sums of differences, beyond that dot products."""
    points = normal(3, 9, coordinates, seed=1)
    points[:, 5] = points[:, 0]  # close points
    out = torch.empty(3, 4, 9, dtype=points.dtype)
    distances(points - points.mean(dim=1, keepdim=True), out)
    exact = (points[:, :4, None] - points[:, None]).square().sum(dim=-1).clamp_min(1e-8).sqrt()
    np.testing.assert_allclose(out, exact, rtol=1e-9, atol=1e-6)
    assert out[0, 0, 5] == pytest.approx(1e-4, abs=1e-6)


def test_blocks_cover_every_position_once() -> None:
    for conditions, positions, size in itertools.product((1, 3, 7), (1, 4, 10), (1, 3, 4, 9, 100)):
        seen = torch.zeros(conditions, positions)
        for block in split(conditions, positions, size):
            seen[block] += 1
            assert 0 < seen[block].numel() <= size
        assert bool((seen == 1).all())
