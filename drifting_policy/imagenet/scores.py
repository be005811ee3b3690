"""Scores: what features tell about samples, each number with its interval, and a sentence wherever one is to be doubted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from drifting_policy.imagenet.extractors import Extractor
from drifting_policy.imagenet.feature_sets import FeatureSet
from drifting_policy.imagenet.fidelity import (
    FeatureStatistics,
    bootstrap_interval,
    frechet_distance,
    inception_score,
    share_interval,
)
from drifting_policy.imagenet.neighbours import COVERAGE_K, PRECISION_K, closer_share, compare_manifolds, nearest

CONFIDENCE = 0.95
PUBLISHED_SAMPLES = 50_000  # of published FIDs and Inception scores
CHEAP = 1e9  # multiplications of one covariance, up to which a distance is bootstrapped
COPY_QUANTILE = 0.01  # of the distances of unseen images: what lies nearer counts as a copy

Metric = dict[str, Any]


@final
@dataclass(frozen=True)
class Evidence:
    """Everything that is judged.

    Attributes:
        extractor: Whose features these are.
        samples: The generated images, with probabilities.
        reference: The real images that they are compared with.
        training: The images that a generator learns from; None where there are none.
        unseen: Images of the same kind that it never saw.
        labels: Classes that the samples were generated for; None where they are not known or not those of the extractor.
        neighbours: How many features of each set neighbours are sought among.
    """

    extractor: Extractor
    samples: FeatureSet
    reference: FeatureSet
    training: FeatureSet | None = None
    unseen: FeatureSet | None = None
    labels: Int64[np.ndarray, " n"] | None = None
    neighbours: int = 10_000
    warnings: list[str] = field(default_factory=list)


def judge(evidence: Evidence) -> dict[str, Metric]:
    """All metrics that the evidence allows, by name; `evidence.warnings` then says what was left out, and what to doubt."""
    samples, reference, warn = evidence.samples, evidence.reference, evidence.warnings.append
    for name, features in (("samples", samples), ("reference images", reference)):
        if features.broken:
            warn(f"The features of {features.broken} of {features.count} {name} hold NaN or infinity: nothing can be told.")
    if samples.broken or reference.broken:
        return {}
    found: dict[str, Metric] = {}
    found |= distance(evidence)
    found |= class_metrics(evidence)
    found |= manifold_metrics(evidence)
    found |= copying(evidence)
    return found


def distance(evidence: Evidence) -> dict[str, Metric]:
    """The Frechet distance of the samples to the reference, and the one between seen and unseen images as a yardstick."""
    extractor, samples, reference = evidence.extractor, evidence.samples, evidence.reference
    assert samples.statistics is not None
    assert reference.statistics is not None
    for name, count in (("samples", samples.count), ("reference images", reference.count)):
        if count is not None and count < 2:
            evidence.warnings.append(f"A single feature has no covariance: with one of the {name} there is no distance.")
            return {}
        if count is not None and count <= extractor.dim:
            evidence.warnings.append(
                f"{count} {name} are not more than the {extractor.dim} numbers of a feature: their covariance is singular, and "
                f"the {extractor.distance} is far too large."
            )
    if extractor.distance == "FID" and samples.count != PUBLISHED_SAMPLES:
        evidence.warnings.append(f"Published FIDs are those of {PUBLISHED_SAMPLES} samples; one of {samples.count} is another.")
    target = reference.statistics
    metric: Metric = {"name": extractor.distance, "value": frechet_distance(samples.statistics, target), "n": samples.count}
    cost = len(samples.features) * extractor.dim**2
    if len(samples.features) == samples.count and cost <= CHEAP:
        metric |= resampled(lambda rows: frechet_distance(FeatureStatistics.of(rows), target), samples.features, resamples=100)
        metric["low"] = max(0.0, metric["low"])
    seen, unseen = (side.statistics if side is not None else None for side in (evidence.training, evidence.unseen))
    if seen is not None and unseen is not None:
        metric["between_training_and_unseen_images"] = frechet_distance(seen, unseen)
    return {"frechet_distance": metric}


def class_metrics(evidence: Evidence) -> dict[str, Metric]:
    """What the probabilities of classes tell: the class score, and whether the samples are of the classes they should be."""
    probabilities, found = evidence.samples.probabilities, {}
    if not len(probabilities):
        return {}
    splits = int(np.clip(len(probabilities) // 100, 1, 10))
    mean, std = inception_score(probabilities, splits=splits)
    found["class_score"] = {"name": evidence.extractor.score, "value": mean, "std": std, "splits": splits}
    if evidence.labels is not None:
        right = probabilities.argmax(1) == torch.from_numpy(evidence.labels)
        found["class_accuracy"] = {"name": "samples of their class", **share(right)}
    return found


def manifold_metrics(evidence: Evidence) -> dict[str, Metric]:
    """Precision, recall, density and coverage of equally many samples and reference images."""
    count = min(evidence.neighbours, len(evidence.samples.features), len(evidence.reference.features))
    if not len(evidence.reference.features):
        evidence.warnings.append("The reference is a file of statistics: nothing is told about neighbours among its images.")
        return {}
    if count <= (needed := max(PRECISION_K, COVERAGE_K)):
        evidence.warnings.append(
            f"Precision, recall, density and coverage need more than {needed} features; there are {count}."
        )
        return {}
    found = compare_manifolds(thinned(evidence.samples.features, count), thinned(evidence.reference.features, count))
    return {
        "precision": {"name": "precision", **share(found.precision), "k": PRECISION_K},
        "recall": {"name": "recall", **share(found.recall), "k": PRECISION_K},
        "density": {
            "name": "density",
            **resampled(lambda rows: float(rows.mean()), found.density[:, None], resamples=1000),
            "k": COVERAGE_K,
        },
        "coverage": {"name": "coverage", **share(found.coverage), "k": COVERAGE_K},
    }


def copying(evidence: Evidence) -> dict[str, Metric]:
    """Whether samples lie nearer to training images than unseen images do.

    `closer_to_training` is the probability that a sample lies nearer to its nearest training image than an unseen image to its
    own, 1/2 without copying (Meehan et al. 2020); `copies` is the share of samples that lie nearer than all but 1 % of the
    unseen images.
    """
    training, unseen = evidence.training, evidence.unseen
    if training is None or unseen is None or training.broken or unseen.broken:
        evidence.warnings.append("Without training images and images that were not trained on, copies cannot be told.")
        return {}
    samples = thinned(evidence.samples.features, evidence.neighbours)
    apart = nearest(samples, training.features)
    usual = nearest(thinned(unseen.features, evidence.neighbours), training.features)
    near = apart < usual.quantile(COPY_QUANTILE)
    return {
        "closer_to_training": {"name": "nearer to training images than unseen images are", "value": closer_share(apart, usual)},
        "copies": {"name": f"nearer than all but {COPY_QUANTILE:.0%} of unseen images", **share(near)},
    }


def share(values: Bool[Tensor, " n"]) -> Metric:
    """The share of true values with its interval, and their number."""
    low, high = share_interval(int(values.sum()), len(values), confidence=CONFIDENCE)
    value = float(values.double().mean())
    return {"value": value, "low": low, "high": high, "confidence": CONFIDENCE, "method": "Wilson", "n": len(values)}


def resampled(statistic: Callable[[Tensor], float], rows: Float[Tensor, "n e"], *, resamples: int) -> Metric:
    """`statistic` of `rows` with its bootstrap interval over samples."""
    low, high = bootstrap_interval(statistic, rows, confidence=CONFIDENCE, resamples=resamples)
    method = f"bootstrap, {resamples} resamples"
    return {"value": statistic(rows), "low": low, "high": high, "confidence": CONFIDENCE, "method": method, "n": len(rows)}


def thinned(features: Tensor, count: int) -> Tensor:
    """At most `count` of the features, at equal distances."""
    if len(features) <= count:
        return features
    return features[torch.linspace(0, len(features) - 1, count).round().long()]
