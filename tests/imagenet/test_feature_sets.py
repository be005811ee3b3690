"""Features of sets of images: the same however the images come in parts, kept, and kept apart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from drifting_policy.imagenet import feature_sets
from drifting_policy.imagenet.extractors import Extractor, Found
from drifting_policy.imagenet.feature_sets import cached_features, gather, image_digest, read_statistics
from drifting_policy.imagenet.fidelity import FeatureStatistics
from drifting_policy.imagenet.images import ImageSet
from drifting_policy.types import DatasetError


class Corners(Extractor):
    """Two pixels and their difference; what is asked of it is counted."""

    name, distance, score, dim, fingerprint = "corners", "distance of corners", "score of corners", 3, "0"

    def __init__(self, *, hole: int | None = None) -> None:
        self.calls, self.hole = 0, hole

    def extract(self, images: torch.Tensor) -> Found:
        self.calls += 1
        first, last = images[:, 0, 0, 0].float(), images[:, -1, -1, -1].float()
        features = torch.stack([first, last, first * last / 100], dim=1)
        if self.hole is not None:
            features[first == self.hole] = torch.nan
        return features, torch.stack([first, 255 - first], dim=1) / 255


def pictures(count: int, seed: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def dataset(count: int = 30, seed: int = 0) -> ImageSet:
    return ImageSet(images=pictures(count, seed), labels=np.arange(count) % 2, class_names=("a", "b"), kind="pixels")


@pytest.mark.parametrize("cuts", [[], [1], [64, 65], list(range(1, 150))])
def test_features_do_not_depend_on_the_parts(cuts: list[int]) -> None:
    images = pictures(150)
    expected, probabilities = Corners().extract(torch.from_numpy(images))
    found = gather(Corners(), np.split(images, cuts), count=150, keep=1000, probabilities=True, label="x")
    assert torch.equal(found.features, expected)
    assert torch.equal(found.probabilities, probabilities if probabilities is not None else expected)
    whole = FeatureStatistics.of(expected)
    assert found.statistics is not None
    torch.testing.assert_close(found.statistics.mean, whole.mean)
    torch.testing.assert_close(found.statistics.covariance, whole.covariance)
    assert (found.count, found.statistics.count, found.broken) == (150, 150, 0)


def test_an_extractor_sees_full_batches_whatever_comes_in() -> None:
    extractor = Corners()
    gather(extractor, np.split(pictures(150), range(1, 150)), count=150, keep=10, label="x")
    assert extractor.calls == 3


def test_kept_features_are_spread_over_all_images() -> None:
    found = gather(Corners(), [pictures(150)], count=150, keep=4, label="x")
    assert found.features[:, 0].tolist() == [0, 50, 99, 149]
    assert not len(found.probabilities)


def test_features_that_are_not_finite_are_counted_and_leave_no_statistics() -> None:
    found = gather(Corners(hole=7), [pictures(100)], count=100, keep=100, label="x")
    assert (found.broken, found.statistics) == (1, None)


@pytest.mark.parametrize("count", [9, 11])
def test_a_wrong_number_of_images_is_named(count: int) -> None:
    with pytest.raises(DatasetError, match=f"{count} images were expected; there are 10"):
        gather(Corners(), [pictures(10)], count=count, keep=5, label="x")


def cached(extractor: Extractor, images: ImageSet, folder: Path, *, keep: int = 20) -> feature_sets.FeatureSet:
    return cached_features(extractor, images, digest=image_digest(images), keep=keep, folder=folder, label="x")


def test_features_of_a_data_set_are_computed_once(tmp_path: Path) -> None:
    extractor = Corners()
    first = cached(extractor, dataset(), tmp_path / "deep" / "features")
    again = cached(extractor, dataset(), tmp_path / "deep" / "features")
    assert extractor.calls == 1
    assert first.statistics is not None
    assert again.statistics is not None
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.statistics.covariance, again.statistics.covariance)
    assert (again.count, again.statistics.count) == (30, 30)


def test_features_of_others_are_not_taken_for_them(tmp_path: Path) -> None:
    extractor = Corners()
    cached(extractor, dataset(), tmp_path)
    cached(extractor, dataset(seed=1), tmp_path)
    cached(extractor, dataset(), tmp_path, keep=5)
    extractor.fingerprint = "1"
    cached(extractor, dataset(), tmp_path)
    assert extractor.calls == 4
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    cached(extractor, dataset(), tmp_path)
    assert extractor.calls == 5


def test_broken_features_are_not_kept(tmp_path: Path) -> None:
    assert cached(Corners(hole=7), dataset(), tmp_path).broken == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="could not be written"):
        cached(Corners(), dataset(), tmp_path / "file")


def test_a_digest_tells_images_labels_and_classes_apart() -> None:
    first, digest = dataset(), image_digest(dataset())
    assert image_digest(first) == digest
    others = [
        dataset(seed=1),
        ImageSet(images=first.images, labels=1 - first.labels, class_names=("a", "b"), kind="pixels"),
        ImageSet(images=first.images, labels=first.labels, class_names=("a", "c"), kind="pixels"),
    ]
    assert len({digest, *map(image_digest, others)}) == 4


def test_statistics_come_from_a_file(tmp_path: Path) -> None:
    file, covariance = tmp_path / "reference.npz", np.diag([1.0, 2.0])
    np.savez(file, mu=np.array([1, 2], np.float32), sigma=covariance, arr_0=np.zeros(3))
    found = read_statistics(file)
    assert found.statistics is not None
    assert found.statistics.mean.tolist() == [1, 2]
    assert torch.equal(found.statistics.covariance, torch.from_numpy(covariance))
    assert (found.count, found.statistics.count, len(found.features)) == (None, None, 0)
    np.savez(file, mu=np.zeros(3), sigma=covariance)
    with pytest.raises(DatasetError, match=r"sigma 'e e'; got \(3,\) and \(2, 2\)"):
        read_statistics(file)
    np.savez(file, mu=np.zeros(3))
    with pytest.raises(DatasetError, match="lacks the array"):
        read_statistics(file)
    np.savez(file, mu=np.array([None]), sigma=covariance)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_statistics(file)
    file.write_bytes(b"PK")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_statistics(file)


def test_latents_are_not_judged() -> None:
    latents = ImageSet(
        images=np.zeros((4, 4, 2, 2), np.float32), labels=np.arange(4) % 2, class_names=("a", "b"), kind="latents"
    )
    with pytest.raises(DatasetError, match="Latents cannot be judged"):
        image_digest(latents)
