"""RealImages: what samples are compared with, as features: a data set and its two splits, or published statistics."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from drifting_policy.imagenet.classifier import cached_classifier
from drifting_policy.imagenet.extractors import Extractor, open_extractor
from drifting_policy.imagenet.feature_sets import FeatureSet, cached_features, image_digest, read_statistics
from drifting_policy.imagenet.images import SPLITS, ImageSet, open_images
from drifting_policy.imagenet.manifest import MANIFEST, read_manifest
from drifting_policy.imagenet.sources import open_sources
from drifting_policy.imagenet.store import is_cache
from drifting_policy.types import ConfigError, DatasetError

OWN = "classifier"  # the extractor that is trained on the data itself
KEPT = 50_000  # features of a split that neighbours are sought among


@final
@dataclass(frozen=True)
class RealImages:
    """A data set.

    Attributes:
        place: What the user called it.
        splits: Its images, of at least the split that is the reference; empty for a file of statistics.
    """

    place: str
    splits: Mapping[str, ImageSet]

    @staticmethod
    def open(place: str, *, split: str, size: int | None) -> "RealImages":
        """The data set at `place`, or the file of statistics that ends in .npz.

        Raises:
            DatasetError: `split` is not there, or holds latents.
            ConfigError: an unknown split.
        """
        if place.endswith(".npz"):
            return RealImages(place, {})
        others = [name for name in present_splits(place) if name != split]
        splits = {name: open_images(place, split=name, size=size) for name in (split, *others)}
        for images in splits.values():
            if images.kind != "pixels":
                raise DatasetError(f"{place} holds latents, which cannot be judged; give the images that they were made of.")
        return RealImages(place, splits)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the labels; empty for a file of statistics."""
        return next((images.class_names for images in self.splits.values()), ())

    def class_shares(self) -> list[int]:
        """How many training images there are of each class.

        Raises:
            ConfigError: there are no training images.
        """
        if "train" not in self.splits:
            raise ConfigError(f"labels=data needs a training split, which {self.place} does not have; choose labels=balanced.")
        images = self.splits["train"]
        return torch.bincount(torch.from_numpy(images.labels), minlength=len(images.class_names)).tolist()


def present_splits(place: str) -> list[str]:
    """Which of the splits "train" and "test" there are at `place`.

    Raises:
        DatasetError: there is nothing, or it is damaged.
    """
    if is_cache(Path(place)):
        return [split for split in SPLITS if (Path(place) / split / MANIFEST).is_file()]
    with open_sources(place) as sources:
        return list(sources)


def split_digest(place: str, split: str, images: ImageSet) -> str:
    """Checksum of the images of one split: that of a cache from its manifest, any other from all pixels."""
    if is_cache(Path(place)):
        return hashlib.sha256(json.dumps(read_manifest(Path(place) / split).sha256, sort_keys=True).encode()).hexdigest()
    return image_digest(images)


@final
@dataclass(frozen=True)
class Reference:
    """Real images as an extractor sees them.

    Attributes:
        extractor: Whose features these are.
        features: Those that samples are compared with.
        training: Of the training images; None where there are none.
        unseen: Of the test images.
        about: What results say of them.
    """

    extractor: Extractor
    features: FeatureSet
    training: FeatureSet | None
    unseen: FeatureSet | None
    about: Mapping[str, Any]


def open_reference(real: RealImages, extractor: str, *, split: str, folder: Path, device: torch.device) -> Reference:
    """The features of `real` by the extractor of that name, from files in `folder` where they were computed before.

    Raises:
        ConfigError: an extractor that is unknown, cannot be loaded or does not fit.
        DatasetError: statistics that are damaged or have another dimension.
    """
    if not real.splits:
        if extractor == OWN:
            raise ConfigError(f"{real.place} holds statistics alone, for extractor=inception most likely; nothing to train on.")
        found = open_extractor(extractor, device=device)
        features = read_statistics(Path(real.place))
        assert features.statistics is not None
        if (dim := len(features.statistics.mean)) != found.dim:
            raise DatasetError(f"{real.place} has statistics of {dim} numbers; {found.name} finds {found.dim}.")
        return Reference(found, features, None, None, {"data": real.place, "split": None, "n": None})
    digests = {name: split_digest(real.place, name, images) for name, images in real.splits.items()}
    if extractor == OWN:
        if set(real.splits) != {"train", "test"}:
            raise ConfigError(f"extractor={OWN} needs a training and a test split, which {real.place} does not have both.")
        trained = cached_classifier(
            real.splits["train"], real.splits["test"], name=real.place, digest=digests["train"], folder=folder, device=device
        )
        extractor = f"{OWN}:{trained}"
    found = open_extractor(extractor, device=device)
    sets = {
        name: cached_features(
            found, images, digest=digests[name], keep=KEPT, folder=folder, label=f"features of the {name} images"
        )
        for name, images in real.splits.items()
    }
    about = {"data": real.place, "split": split, "n": len(real.splits[split]), "sha256": digests[split]}
    return Reference(found, sets[split], sets.get("train"), sets.get("test"), about)
