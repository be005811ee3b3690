"""FeatureSet: what an extractor finds in a set of images, gathered batch by batch and kept for the next time."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from drifting_policy.imagenet.extractors import Extractor
from drifting_policy.imagenet.fidelity import FeatureStatistics
from drifting_policy.imagenet.images import ImageSet
from drifting_policy.types import DatasetError

BATCH = 64  # images that an extractor sees at a time, wherever they come from
LAYOUT = 1  # of the files; another one never reads as this

Images = UInt8[np.ndarray, "_ h w c"]  # parts of a set differ in length


@final
@dataclass(frozen=True)
class FeatureSet:
    """Features of images.

    Attributes:
        count: Number of images.
        statistics: Of the features of all images; None where one of them is not finite.
        features: "n e" of some of the images at equal distances, float32; none where they come from a file of statistics.
        probabilities: "m classes" of all images; none where the extractor knows no classes, or they were not asked for.
        broken: Number of images whose features are not finite.
    """

    count: int | None
    statistics: FeatureStatistics | None
    features: Float[Tensor, "n e"]
    probabilities: Float[Tensor, "m classes"]
    broken: int = 0


def gather(
    extractor: Extractor, images: Iterable[Images], *, count: int, keep: int, probabilities: bool = False, label: str
) -> FeatureSet:
    """The features of `count` images, which come in parts of any size; at most `keep` features remain.

    Raises:
        DatasetError: there are fewer images or more.
        ConfigError: images that the extractor cannot see.
    """
    chosen = np.unique(np.linspace(0, count - 1, min(keep, count)).round().astype(int))
    statistics, kept, classes = None, [], []
    seen = broken = 0
    with tqdm(total=count, unit="image", desc=label, disable=None) as bar:
        for part in _batches(images):
            features, told = extractor.extract(torch.from_numpy(part))
            kept.append(features[chosen[(chosen >= seen) & (chosen < seen + len(part))] - seen])
            classes += [told] if told is not None and probabilities else []
            good = features.isfinite().all(1)
            broken += int((~good).sum())
            if good.any():
                found = FeatureStatistics.of(features[good])
                statistics = found if statistics is None else statistics.merge(found)
            seen += len(part)
            bar.update(len(part))
    if seen != count:
        raise DatasetError(f"{label}: {count} images were expected; there are {seen}.")
    none = torch.zeros(0, 0)
    return FeatureSet(count, None if broken else statistics, torch.cat(kept), torch.cat(classes) if classes else none, broken)


def image_parts(images: ImageSet, *, size: int = 512) -> Iterator[Images]:
    """The pixels of a data set, part by part.

    Raises:
        DatasetError: it holds latents.
    """
    if images.kind != "pixels":
        raise DatasetError("Latents cannot be judged; give the images that they were made of, as data=PATH.")
    for first in range(0, len(images), size):
        yield np.asarray(images.images[first : first + size])


def image_digest(images: ImageSet) -> str:
    """Checksum of all pixels of a data set and its classes."""
    digest = hashlib.sha256(json.dumps([list(images.class_names), list(images.images.shape)]).encode())
    digest.update(np.ascontiguousarray(images.labels).tobytes())
    for part in image_parts(images):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def cached_features(extractor: Extractor, images: ImageSet, *, digest: str, keep: int, folder: Path, label: str) -> FeatureSet:
    """The features of a data set, from a file in `folder` if there is one for these images, this extractor and `keep`.

    Raises:
        DatasetError: latents, or a folder that cannot be written.
    """
    key = [LAYOUT, digest, extractor.name, extractor.fingerprint, keep]
    file = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"
    found = _read(file)
    if found is not None:
        return found
    found = gather(extractor, image_parts(images), count=len(images), keep=keep, label=label)
    if found.statistics is not None:
        _write(file, found)
    return found


def read_statistics(file: Path) -> FeatureSet:
    """The statistics in an .npz file with the arrays `mu` and `sigma`, as reference statistics for FID are published.

    Raises:
        DatasetError: the file is missing, damaged, or holds something else.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    except KeyError as error:
        raise DatasetError(f"{file} is no file of reference statistics: it lacks the array {error}.") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DatasetError(f"The reference statistics {file} cannot be read ({error}).") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DatasetError(f"{file}: mu must be 'e' and sigma 'e e'; got {tuple(mean.shape)} and {tuple(covariance.shape)}.")
    none = torch.zeros(0, 0)
    return FeatureSet(None, FeatureStatistics(None, mean, covariance), none, none)


def _batches(parts: Iterable[Images]) -> Iterator[Images]:
    """The same images in batches of BATCH: what an extractor sees together must not depend on how images are stored."""
    rest = None
    for part in parts:
        joined = part if rest is None or not len(rest) else np.concatenate([rest, part])
        full = len(joined) - len(joined) % BATCH
        for first in range(0, full, BATCH):
            yield np.array(joined[first : first + BATCH])  # a copy: PyTorch takes no array that cannot be written
        rest = joined[full:]
    if rest is not None and len(rest):
        yield np.array(rest)


def _read(file: Path) -> FeatureSet | None:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            mean, covariance, features = (torch.from_numpy(arrays[name]) for name in ("mu", "sigma", "features"))
            count = int(arrays["count"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return FeatureSet(count, FeatureStatistics(count, mean, covariance), features, torch.zeros(0, 0))


def _write(file: Path, found: FeatureSet) -> None:
    assert found.statistics is not None
    draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
    arrays = {"mu": found.statistics.mean, "sigma": found.statistics.covariance, "features": found.features}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as stream:
            np.savez(stream, count=np.array(found.count), **{name: value.numpy() for name, value in arrays.items()})
        draft.replace(file)
    except OSError as error:
        raise DatasetError(
            f"The features {file} could not be written ({error}); set DRIFTING_POLICY_CACHE elsewhere."
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
