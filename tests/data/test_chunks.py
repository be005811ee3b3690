"""The chunk index against plain loops, and the split of episodes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.data.chunks import chunk_index, split_episodes
from drifting_policy.types import ConfigError

Row = tuple[int, list[int], list[bool]]


def loop_chunks(lengths: list[int], to: int, t: int, ta: int) -> list[Row]:
    """Episode, steps and validity of every chunk, one step at a time."""
    rows: list[Row] = []
    offset = 0
    for episode, length in enumerate(lengths):
        for start in range(-(to - 1), length):
            wanted = [start + i for i in range(t)]
            padding_behind = sum(step >= length for step in wanted)
            if padding_behind <= ta - 1 or start == -(to - 1):
                steps = [offset + min(max(step, 0), length - 1) for step in wanted]
                rows.append((episode, steps, [0 <= step < length for step in wanted]))
        offset += length
    return rows


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    to=st.integers(1, 4),
    ta=st.integers(1, 5),
    spare=st.integers(0, 5),
)
def test_equals_plain_loops(lengths: list[int], to: int, ta: int, spare: int) -> None:
    t = to - 1 + ta + spare
    index = chunk_index(np.cumsum(lengths), obs_horizon=to, pred_horizon=t, exec_horizon=ta)
    assert list(zip(index.episode.tolist(), index.steps.tolist(), index.valid.tolist(), strict=True)) == loop_chunks(
        lengths, to, t, ta
    )
    some = index.of_episodes(np.arange(0, len(lengths), 2))
    assert list(zip(some.episode.tolist(), some.steps.tolist(), some.valid.tolist(), strict=True)) == [
        row for row in loop_chunks(lengths, to, t, ta) if row[0] % 2 == 0
    ]


def test_one_episode_spelled_out() -> None:
    index = chunk_index(np.array([4, 5]), obs_horizon=2, pred_horizon=4, exec_horizon=2)
    assert index.steps.tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3], [4, 4, 4, 4]]
    assert (~index.valid).astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1]]
    assert index.episode.tolist() == [0, 0, 0, 1]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(n=st.integers(2, 80), fraction=st.floats(1e-6, 1, exclude_max=True), seed=st.integers(0, 99))
def test_the_split_is_disjoint_complete_and_of_the_asked_size(n: int, fraction: float, seed: int) -> None:
    training, validation = split_episodes(n, validation_fraction=fraction, seed=seed)
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(n))
    assert all((np.diff(part) > 0).all() and len(part) for part in (training, validation))
    assert abs(len(validation) - np.clip(fraction * n, 1, n - 1)) <= 0.5
    again = split_episodes(n, validation_fraction=fraction, seed=seed)
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate([training, validation]))


def test_the_seed_decides_the_split_and_no_episode_is_privileged() -> None:
    held_out = [tuple(split_episodes(10, validation_fraction=0.2, seed=seed)[1]) for seed in range(60)]
    assert len(set(held_out)) > 10
    assert set(np.concatenate(held_out)) == set(range(10))


def test_without_a_fraction_all_episodes_are_trained_on() -> None:
    training, validation = split_episodes(1, validation_fraction=0.0, seed=0)
    assert (training.tolist(), validation.tolist()) == ([0], [])


@pytest.mark.parametrize(
    ("n", "fraction", "words"),
    [(9, 1.0, "must lie in"), (9, -0.1, "must lie in"), (9, float("nan"), "must lie in"), (1, 0.1, "single episode")],
)
def test_impossible_splits_are_refused(n: int, fraction: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        split_episodes(n, validation_fraction=fraction, seed=0)
