"""Scores: each number where it belongs, and a sentence instead of silence wherever one is missing or to be doubted."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drifting_policy.imagenet.extractors import Extractor, Found
from drifting_policy.imagenet.feature_sets import FeatureSet
from drifting_policy.imagenet.fidelity import FeatureStatistics, frechet_distance
from drifting_policy.imagenet.scores import Evidence, judge, resampled, share, thinned

ALL = {
    "frechet_distance",
    "class_score",
    "class_accuracy",
    "precision",
    "recall",
    "density",
    "coverage",
    "closer_to_training",
    "copies",
}


class Named(Extractor):
    """Names alone."""

    name, distance, score, dim, fingerprint, class_names = "n", "some distance", "some score", 4, "0", ("a", "b")

    def extract(self, images: torch.Tensor) -> Found:
        raise AssertionError("the features are there already")


class Inception(Named):
    """The one whose distance is called FID."""

    distance = "FID"


def cloud(seed: int, count: int = 200, *, offset: float = 0.0, hole: bool = False) -> FeatureSet:
    features = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + offset
    probabilities = torch.stack([features[:, 0], -features[:, 0]], 1).softmax(1)
    if hole:
        features[3] = torch.nan
        return FeatureSet(count, None, features, probabilities, broken=1)
    return FeatureSet(count, FeatureStatistics.of(features), features, probabilities)


def evidence(**changes: Any) -> Evidence:
    samples = cloud(0)
    labels = (samples.probabilities[:, 1] > 0.4).long().numpy()
    sets: dict[str, Any] = {"samples": samples, "reference": cloud(1), "training": cloud(2), "unseen": cloud(1)}
    return Evidence(**{"extractor": Named(), **sets, "labels": labels, "warnings": [], **changes})


def test_samples_like_the_data_score_well_and_nothing_is_to_be_doubted() -> None:
    given = evidence()
    found = judge(given)
    assert set(found) == ALL
    assert given.warnings == []
    statistics = [side.statistics for side in (given.samples, given.reference, given.training) if side is not None]
    assert all(item is not None for item in statistics)
    assert found["frechet_distance"]["value"] == pytest.approx(frechet_distance(statistics[0], statistics[1]))
    assert found["frechet_distance"]["between_training_and_unseen_images"] == pytest.approx(
        frechet_distance(statistics[2], statistics[1])
    )
    assert found["precision"]["value"] > 0.7
    assert found["coverage"]["value"] > 0.7
    assert 0.7 < found["class_accuracy"]["value"] < 1
    assert found["closer_to_training"]["value"] == pytest.approx(0.5, abs=0.1)
    assert found["copies"]["value"] < 0.06
    for metric in found.values():
        assert metric["name"]
        assert metric.get("low", 0.0) >= 0
        assert metric.get("low", -np.inf) <= metric["value"] <= metric.get("high", np.inf)
    assert json.loads(json.dumps(found)) == found


def test_names_of_numbers_are_those_of_the_extractor() -> None:
    assert "FID" not in json.dumps(judge(evidence()))
    assert "Inception" not in json.dumps(judge(evidence()))
    assert judge(evidence(extractor=Inception()))["frechet_distance"]["name"] == "FID"


def test_far_samples_score_badly() -> None:
    found = judge(evidence(samples=cloud(0, offset=20.0)))
    assert found["frechet_distance"]["value"] > 1000
    assert not found["precision"]["value"] + found["recall"]["value"] + found["density"]["value"] + found["coverage"]["value"]


def test_copies_are_seen() -> None:
    training = cloud(2)
    copied = training.features + 1e-4
    found = judge(evidence(samples=replace(training, statistics=FeatureStatistics.of(copied), features=copied)))
    assert found["copies"]["value"] > 0.95
    assert found["closer_to_training"]["value"] > 0.95


@pytest.mark.parametrize("side", ["samples", "reference"])
def test_features_that_are_not_finite_leave_a_sentence(side: str) -> None:
    given = evidence(**{side: cloud(0, hole=True)})
    assert judge(given) == {}
    assert given.warnings[0].startswith("The features of 1 of 200")


@pytest.mark.parametrize("side", ["samples", "reference"])
def test_one_image_is_too_few(side: str) -> None:
    given = evidence(**{side: cloud(0, 1), "labels": None})
    found = judge(given)
    assert "frechet_distance" not in found
    assert "precision" not in found
    assert any("single feature has no covariance" in sentence for sentence in given.warnings)
    assert any("need more than 5 features; there are 1" in sentence for sentence in given.warnings)


@pytest.mark.parametrize("side", ["samples", "reference"])
def test_fewer_images_than_numbers_are_doubted(side: str) -> None:
    given = evidence(**{side: cloud(0, 4), "labels": None})
    assert "frechet_distance" in judge(given)
    assert any("singular" in sentence and sentence.startswith("4 ") for sentence in given.warnings)


def test_what_statistics_alone_cannot_tell_is_said() -> None:
    reference = replace(cloud(1), count=None, features=torch.zeros(0, 0))
    given = evidence(reference=reference, training=None, unseen=None, extractor=Inception())
    assert set(judge(given)) == {"frechet_distance", "class_score", "class_accuracy"}
    assert len(given.warnings) == 3
    assert "50000 samples; one of 200 is another" in given.warnings[0]
    assert "file of statistics" in given.warnings[1]
    assert "copies cannot be told" in given.warnings[2]


def test_without_classes_there_is_no_class_score() -> None:
    found = judge(evidence(samples=replace(cloud(0), probabilities=torch.zeros(0, 0))))
    assert ALL - set(found) == {"class_score", "class_accuracy"}


def test_only_cheap_distances_have_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drifting_policy.imagenet.scores.CHEAP", 10.0)
    assert "low" not in judge(evidence())["frechet_distance"]


def test_shares_and_means_have_intervals() -> None:
    found = share(torch.tensor([True] * 30 + [False] * 70))
    assert found["value"] == 0.3
    assert (found["low"], found["high"]) == (pytest.approx(0.2189, abs=1e-4), pytest.approx(0.3958, abs=1e-4))  # Wilson
    assert (share(torch.zeros(50, dtype=torch.bool))["low"], share(torch.ones(50, dtype=torch.bool))["high"]) == (0, 1)
    assert share(torch.zeros(50, dtype=torch.bool))["high"] > 0.05
    rows = torch.arange(100.0)[:, None]
    mean = resampled(lambda drawn: float(drawn.mean()), rows, resamples=200)
    assert mean["high"] - mean["low"] == pytest.approx(2 * 1.96 * float(rows.std()) / 10, rel=0.3)


def test_thinned_features_are_spread() -> None:
    assert thinned(torch.arange(10.0)[:, None], 4).flatten().tolist() == [0, 3, 6, 9]
    assert len(thinned(torch.zeros(3, 2), 10)) == 3
