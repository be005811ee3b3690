"""Stages of a task: p1 .. pn are shares of episodes, nested, and counted as floats of parts should be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.metrics import LABELS, episode_metrics, is_share, labels, stages_of
from drifting_policy.rollout.statistics import compare_episodes, compare_success, summarize, wilson


def episode(seed: int, score: float) -> Episode:
    return Episode(seed, score, score / 2, score >= 1, 10)


@given(stages=st.integers(1, 9), data=st.data())
def test_a_score_of_k_parts_reaches_k_stages(stages: int, data: st.DataObject) -> None:
    reached = data.draw(st.integers(0, stages))
    score = sum([1 / stages] * reached, start=0.0)  # rounded at every step, as rewards are
    values = episode_metrics(episode(0, score), stages)
    assert [values[f"p{k}"] for k in range(1, stages + 1)] == [1.0] * reached + [0.0] * (stages - reached)
    assert set(values) == set(labels(stages))


def test_a_task_without_stages_has_the_metrics_of_every_task() -> None:
    assert list(labels()) == list(LABELS) == list(episode_metrics(episode(0, 0.5)))
    assert stages_of(labels(7)) == 7
    assert stages_of([*labels(2), "p1_low", "p50_ms", "policy"]) == 2
    assert [name for name in labels(1) if is_share(name)] == ["success", "p1"]


def test_shares_have_the_interval_of_shares() -> None:
    scores = [0.0, 0.25, 0.5, 0.5, 1.0]
    found = summarize([episode(seed, score) for seed, score in enumerate(scores)], stages=4)
    assert [found[f"p{k}"].value for k in (1, 2, 3, 4)] == pytest.approx([0.8, 0.6, 0.2, 0.2])
    assert found["p2"] == wilson(3, 5)
    assert found["p4"] == found["success"]
    assert np.mean([found[f"p{k}"].value for k in (1, 2, 3, 4)]) == pytest.approx(found["max_score"].value)


def test_stages_are_compared_in_pairs() -> None:
    a = [episode(seed, score) for seed, score in enumerate([1.0, 1.0, 0.5, 0.5, 0.0])]
    b = [episode(seed, score) for seed, score in enumerate([0.5, 0.0, 0.5, 0.0, 0.0])]
    found = compare_episodes(a, b, stages=2)
    assert found["p1"] == compare_success([True, True, True, True, False], [True, False, True, False, False])
    assert found["p2"] == found["success"]
    assert set(compare_episodes(a, b)) == set(LABELS)
