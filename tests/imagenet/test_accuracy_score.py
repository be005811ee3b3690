"""The classification accuracy score: real images teach, one image per class does not, and what cannot be taught is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drifting_policy.imagenet.accuracy_score import accuracy_score, check_real
from drifting_policy.imagenet.classifier import OPTIONS
from drifting_policy.imagenet.feature_sets import image_parts
from drifting_policy.imagenet.images import ImageSet, open_images
from drifting_policy.imagenet.sample_sets import SampleSet
from drifting_policy.types import ConfigError

CPU = torch.device("cpu")
QUICK = replace(OPTIONS["digits"], width=12, epochs=5, batch_size=32, learning_rate=1e-2)


def samples_of(images: ImageSet) -> SampleSet:
    return SampleSet(len(images), lambda: image_parts(images), images.labels)


def test_means_of_classes_teach_less_than_images_do() -> None:
    training, testing = open_images("digits"), open_images("digits", split="test")
    means = np.stack([training.images[training.labels == label].mean(0) for label in range(10)]).round().astype(np.uint8)
    typical = replace(training, images=means[training.labels])
    taught, poorly = (accuracy_score(samples_of(images), testing, QUICK, device=CPU) for images in (training, typical))
    assert taught["value"] > 0.9
    assert taught["n"] == len(testing)
    assert taught["low"] < taught["value"] < taught["high"]
    assert poorly["high"] < taught["low"]
    wrong = SampleSet(len(training), lambda: image_parts(training), (training.labels + 1) % 10)
    assert accuracy_score(wrong, testing, QUICK, device=CPU)["value"] < 0.1


def test_samples_that_cannot_teach_are_refused() -> None:
    testing = open_images("digits", split="test")
    given = samples_of(testing)
    for bad in (replace(given, labels=None), replace(given, labels=testing.labels + 1), replace(given, class_names=("a", "b"))):
        with pytest.raises(ConfigError, match="labels of the 10 classes"):
            accuracy_score(bad, testing, QUICK, device=CPU)
    larger = np.zeros((len(testing), 9, 9, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"like the real images, \(8, 8, 1\); got \(9, 9, 3\)"):
        accuracy_score(replace(given, parts=lambda: iter([larger])), testing, QUICK, device=CPU)


def test_an_examination_needs_small_images() -> None:
    with pytest.raises(ConfigError, match="file of statistics"):
        check_real(None)
    large = ImageSet(images=np.zeros((1, 80, 80, 3), np.uint8), labels=np.zeros(1, int), class_names=("a",), kind="pixels")
    with pytest.raises(ConfigError, match="up to 64 pixels; the images have 80x80"):
        check_real(large)
    check_real(open_images("digits", split="test"))
