"""The queue against plain lists, and the fairness of its draws."""

import inspect
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.drift import SampleQueue


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(conditions: list[int], capacity: int, num_conditions: int = 3) -> SampleQueue:
    """A queue whose i-th added sample is [i, condition]."""
    queue = SampleQueue(num_conditions=num_conditions, capacity=capacity, sample_shape=(2,))
    queue.add(torch.tensor([[i, c] for i, c in enumerate(conditions)]).reshape(-1, 2).float(), torch.tensor(conditions).long())
    return queue


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=5))
def test_holds_the_newest_samples_of_every_condition(capacity: int, batches: list[list[int]]) -> None:
    queue = SampleQueue(num_conditions=3, capacity=capacity, sample_shape=())
    expected: list[deque[int]] = [deque(maxlen=capacity) for _ in range(3)]
    clock = 0
    for batch in batches:
        times = list(range(clock, clock + len(batch)))
        clock += len(batch)
        queue.add(torch.tensor(times).float(), torch.tensor(batch).long())
        for time, condition in zip(times, batch, strict=True):
            expected[condition].append(time)
    assert queue.counts.tolist() == [len(held) for held in expected]
    for condition, held in enumerate(expected):
        assert sorted(queue.samples[condition, : len(held)].tolist()) == list(held)


def test_draws_are_distinct_where_enough_are_held_and_from_the_right_condition() -> None:
    queue = numbered([0] * 5 + [1] * 2 + [2] * 9, capacity=6)
    drawn = queue.sample(torch.tensor([2, 0, 1, 2]), 5, generator=seeded())
    assert drawn.shape == (4, 5, 2)
    assert drawn[..., 1].tolist() == [[2.0] * 5, [0.0] * 5, [1.0] * 5, [2.0] * 5]
    assert [len(set(row.tolist())) for row in drawn[[0, 1, 3], :, 0]] == [5, 5, 5]
    assert set(drawn[2, :, 0].tolist()) <= {5.0, 6.0}
    assert queue.sample(torch.tensor([0]), 50, generator=seeded()).shape == (1, 50, 2)


@pytest.mark.parametrize("k", [2, 8])
def test_every_held_sample_is_equally_likely(k: int) -> None:
    queue = numbered([0] * 4, capacity=5)
    drawn = queue.sample(torch.zeros(4000, dtype=torch.int64), k, generator=seeded())
    share = torch.bincount(drawn[..., 0].long().flatten(), minlength=5) / (4000 * k)
    torch.testing.assert_close(share[:4], torch.full((4,), 0.25), rtol=0, atol=0.02)


def test_draws_depend_on_the_generator_alone() -> None:
    queue, conditions = numbered([0] * 9, capacity=9), torch.zeros(3, dtype=torch.int64)
    first = queue.sample(conditions, 4, generator=seeded(1))
    torch.rand(5)
    assert torch.equal(first, queue.sample(conditions, 4, generator=seeded(1)))
    assert not torch.equal(first, queue.sample(conditions, 4, generator=seeded(2)))


def test_empty_conditions_are_named() -> None:
    with pytest.raises(ValueError, match=r"no sample of condition\(s\) \[1, 2\]"):
        numbered([0, 0], capacity=2).sample(torch.tensor([2, 0, 1]), 1, generator=seeded())


def test_state_is_a_copy_that_restores_the_queue() -> None:
    queue, twin = numbered([0, 1, 1, 2, 1], capacity=2), numbered([], capacity=2)
    state = queue.state_dict()
    twin.load_state_dict(state)
    for added in (queue, twin):
        added.add(torch.ones(2, 2), torch.tensor([1, 0]))
    assert torch.equal(queue.samples, twin.samples)
    assert torch.equal(queue.added, twin.added)
    assert state["added"].tolist() == [1, 3, 1]
    with pytest.raises(ValueError, match=r"samples must have shape \(3, 9, 2\); got \(3, 2, 2\)"):
        numbered([], capacity=9).load_state_dict(state)
    with pytest.raises(ValueError, match="keys"):
        twin.load_state_dict({"samples": state["samples"]})


def test_stored_samples_keep_their_own_precision_and_no_gradient() -> None:
    queue = SampleQueue(num_conditions=1, capacity=2, sample_shape=(3,), dtype=torch.uint8)
    queue.add(torch.full((1, 3), 200.0, requires_grad=True), torch.tensor([0]))
    assert queue.sample(torch.tensor([0]), 1, generator=seeded()).tolist() == [[[200, 200, 200]]]


@pytest.mark.parametrize(
    ("samples", "conditions", "message"),
    [
        (torch.ones(2, 3), torch.tensor([0, 1]), r"samples must have shape \(2, 2\); got \(2, 3\)"),
        (torch.ones(1, 2), torch.tensor([3]), r"Conditions lie in 0..2; got \[3\]"),
        (torch.ones(1, 2), torch.tensor([-1]), r"got \[-1\]"),
        (torch.ones(1, 2), torch.tensor([0.0]), "integers"),
    ],
)
def test_wrong_additions_are_named(samples: torch.Tensor, conditions: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(SampleQueue.add)(numbered([], capacity=2), samples, conditions)


def test_sizes_below_one_are_errors() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SampleQueue(num_conditions=1, capacity=0, sample_shape=())
    with pytest.raises(ValueError, match="k must be at least 1"):
        numbered([0], capacity=1).sample(torch.tensor([0]), 0, generator=seeded())
