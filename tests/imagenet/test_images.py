"""Sets of images: CIFAR-10 and digits, batches against a loop over rows, and arrays that do not belong together."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from drifting_policy.imagenet.images import ImageSet, open_images, to_bytes, to_floats
from drifting_policy.types import ConfigError, DatasetError, MissingPackage


def made_up(kind: str = "pixels", **changes: Any) -> ImageSet:
    """Twelve images of noise, or latents, of three classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    latents, mirrored = rng.normal(size=(2, 12, 4, 3, 3)).astype(np.float16)
    values: dict[str, Any] = {"images": images if kind == "pixels" else latents, "labels": np.arange(12) % 3}
    values |= {"class_names": ("a", "b", "c"), "kind": kind, "mirrored": None if kind == "pixels" else mirrored}
    return ImageSet(**(values | changes))


def test_digits_are_those_of_scikit_learn_in_two_fixed_parts() -> None:
    values, labels = load_digits(return_X_y=True)
    levels = {image.tobytes(): label for image, label in zip(np.round(values * 255 / 16).astype(np.uint8), labels, strict=True)}
    train, test = (open_images("digits", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1297, 500)
    seen = set()
    for part in (train, test):
        assert part.image_shape == (1, 8, 8)
        assert part.class_names == tuple("0123456789")
        assert all(levels[image.tobytes()] == label for image, label in zip(part.images, part.labels, strict=True))
        seen |= {image.tobytes() for image in part.images}
    assert seen == set(levels)
    share = np.bincount(test.labels) / np.bincount(labels)
    assert np.abs(np.bincount(labels) * (share - 500 / 1797)).max() < 1
    assert train.images.max() == 255
    assert open_images("digits", split="test").images[7].tobytes() == test.images[7].tobytes()


def test_cifar10_is_found_below_the_data_folder(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(shared / "data"))
    test = open_images("cifar10", split="test")
    assert test.image_shape == (3, 32, 32)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.class_names[0] == "airplane"
    assert (np.diff(test.labels) >= 0).all()
    assert 100 < np.asarray(test.images).mean() < 140


def test_without_its_file_cifar10_says_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match=rf"cifar10_jpeg_20k_10k.zip below DRIFTING_POLICY_DATA \(which is {tmp_path}"):
        open_images("cifar10")
    monkeypatch.delenv("DRIFTING_POLICY_DATA")
    with pytest.raises(DatasetError, match="which is not set"):
        open_images("cifar10")


def test_without_scikit_learn_there_are_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackage, match="The digits come with scikit-learn"):
        open_images("digits")


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_a_batch_is_its_rows_one_by_one(kind: str) -> None:
    images, rows = made_up(kind), [3, 0, 11, 3, 5]
    flip = torch.tensor([True, False, True, False, False])
    values, labels = images.batch(rows, flip=flip)
    assert values.dtype == torch.float32
    assert values.shape == (5, *images.image_shape)
    for i, row in enumerate(rows):
        if kind == "pixels":
            expected = torch.from_numpy(images.images[row].astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
            expected = expected.flip(-1) if flip[i] else expected
        else:
            assert images.mirrored is not None
            expected = torch.from_numpy((images.mirrored if flip[i] else images.images)[row].astype(np.float32))
        assert torch.equal(values[i], expected)
        assert labels[i] == row % 3
    assert torch.equal(images.batch(torch.tensor(rows))[0], images.batch(np.array(rows), flip=~flip & flip)[0])


def test_batches_leave_the_images_as_they_are() -> None:
    for kind in ("pixels", "latents"):
        images = made_up(kind)
        before = np.array(images.images[:])
        images.batch(range(12), flip=torch.ones(12, dtype=torch.bool))[0].zero_()
        assert np.array_equal(images.images[:], before)


def test_flipping_twice_changes_nothing_and_bytes_survive_the_way_to_floats_and_back() -> None:
    images = made_up()
    every, turned = range(12), torch.ones(12, dtype=torch.bool)
    flipped = made_up(images=to_bytes(images.batch(every, flip=turned)[0]))
    assert not np.array_equal(flipped.images[:], images.images[:])
    assert torch.equal(flipped.batch(every, flip=turned)[0], images.batch(every)[0])
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = to_floats(levels)
    assert np.array_equal(to_bytes(floats), levels)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert to_bytes(torch.tensor([-3.0, 0.0, 1.01]).reshape(1, 1, 1, 3)).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize("rows", [[12], [-1], [[0, 1]], [0, 99]])
def test_rows_that_do_not_exist_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to 11"):
        made_up().batch(np.array(rows))


def test_flips_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="each of the 3 rows; got 2"):
        made_up().batch([0, 1, 2], flip=torch.tensor([True, False]))
    bare = made_up("latents", mirrored=None)
    assert bare.batch([1], flip=torch.tensor([False]))[0].shape == (1, 4, 3, 3)
    with pytest.raises(DatasetError, match="flips=true"):
        bare.batch([1], flip=torch.tensor([True]))


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("sounds", {}, "must be one of"),
        ("pixels", {"images": np.zeros((12, 6, 5, 3), np.float32)}, "uint8 'n h w c'"),
        ("pixels", {"images": np.zeros((12, 6, 5), np.uint8)}, "uint8 'n h w c'"),
        ("pixels", {"images": np.zeros((0, 6, 5, 3), np.uint8), "labels": np.zeros(0, np.int64)}, "no axis empty"),
        ("latents", {"images": np.zeros((12, 4, 3, 3), np.uint8)}, "floating-point 'n c h w'"),
        ("pixels", {"labels": np.zeros(11, np.int64)}, "12 images need as many labels below 3"),
        ("pixels", {"labels": np.zeros(0, np.int64)}, "got 0 labels"),
        ("pixels", {"labels": np.full(12, 3)}, "of 3 to 3"),
        ("pixels", {"labels": np.full(12, -1)}, "of -1 to -1"),
        ("pixels", {"mirrored": np.zeros((12, 6, 5, 3), np.uint8)}, "Only latents"),
        ("latents", {"mirrored": np.zeros((11, 4, 3, 3), np.float16)}, "of the same shape"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        made_up(kind, **changes)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="split must be one of"):
        open_images("digits", split="validation")
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        open_images("digits", size=0)
    assert open_images("digits", split="test", size=16).image_shape == (1, 16, 16)
