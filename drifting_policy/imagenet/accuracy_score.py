"""The classification accuracy score (Ravuri & Vinyals 2019): what samples teach a classifier about real images.

A share of samples that a classifier finds to be of their class is largest where each class is painted as one typical image.
The score asks the other way round: a classifier that learns from the samples alone has to tell the classes of real images
apart, and one image per class does not teach it how they differ.
"""

import numpy as np
import torch

from drifting_policy.imagenet.classifier import LARGEST, ClassifierOptions, right_answers, train_classifier
from drifting_policy.imagenet.images import ImageSet
from drifting_policy.imagenet.sample_sets import SampleSet
from drifting_policy.imagenet.scores import Metric, share
from drifting_policy.types import ConfigError


def check_real(real: ImageSet | None) -> None:
    """Refuse, before anything is drawn, what no classifier can be examined with.

    Raises:
        ConfigError: statistics instead of images, or images too large for the own classifier.
    """
    if real is None:
        raise ConfigError("cas=true examines a classifier with real images; data= is a file of statistics. Leave cas out.")
    channels, height, width = real.image_shape
    if max(height, width) > LARGEST:
        raise ConfigError(
            f"cas=true trains the own classifier, which takes up to {LARGEST} pixels; the images have {height}x{width} and "
            f"{channels} channels. Leave cas out, or compare smaller images: size=N."
        )


def accuracy_score(samples: SampleSet, real: ImageSet, options: ClassifierOptions, *, device: torch.device) -> Metric:
    """The share of `real` that a classifier tells right which learnt from `samples` alone, with its interval.

    Raises:
        ConfigError: samples without labels, of other classes, or of another shape.
    """
    labels = samples.labels
    if labels is None or not samples.of_classes(real.class_names):
        raise ConfigError(f"cas=true needs samples with labels of the {len(real.class_names)} classes of the real images.")
    images = np.concatenate(list(samples.parts()))
    if images.shape[1:] != real.images.shape[1:]:
        raise ConfigError(f"cas=true needs samples like the real images, {real.images.shape[1:]}; got {images.shape[1:]}.")
    lesson = ImageSet(images=images, labels=labels, class_names=real.class_names, kind="pixels")
    right = right_answers(train_classifier(lesson, options, device=device), real)
    return {"name": "real images told by a classifier of samples", **share(right)}
