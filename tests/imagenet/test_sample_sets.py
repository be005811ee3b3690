"""Samples that others generated: arrays and pictures, and what is none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drifting_policy.imagenet import sample_sets
from drifting_policy.imagenet.sample_sets import SampleSet, read_samples
from drifting_policy.types import DatasetError


def pictures(count: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, channels), dtype=np.uint8)


def whole(samples: SampleSet) -> np.ndarray:
    first, again = (np.concatenate(list(samples.parts())) for _ in range(2))
    assert np.array_equal(first, again)
    assert len(first) == samples.count
    return first


@pytest.mark.parametrize("names", [("arr_0", "arr_1"), ("images", "labels")])
def test_arrays_with_and_without_labels(tmp_path: Path, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_sets, "PART", 3)
    np.savez(tmp_path / "a.npz", **{names[0]: pictures(), names[1]: np.arange(7, dtype=np.int32)})
    found = read_samples(tmp_path / "a.npz")
    assert np.array_equal(whole(found), pictures())
    assert [len(part) for part in found.parts()] == [3, 3, 1]
    assert found.labels is not None
    assert found.labels.tolist() == list(range(7))
    np.savez(tmp_path / "b.npz", **{names[0]: pictures()})
    assert read_samples(tmp_path / "b.npz").labels is None


def test_samples_in_the_units_of_networks_become_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", samples=(pictures(channels=1).transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32))
    assert np.array_equal(whole(read_samples(tmp_path / "a.npz")), pictures(channels=1))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.zeros(3)}, "holds none of the arrays arr_0, images, samples"),
        ({"arr_0": np.zeros((3, 4), np.uint8)}, "uint8 'n h w c'"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "uint8 'n h w c'"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.int64)}, "must be uint8, or finite numbers"),
        ({"samples": np.full((2, 3, 4, 4), np.nan)}, "must be uint8, or finite numbers"),
        ({"samples": np.zeros((2, 4, 4, 4))}, "Latents are to be decoded"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, int)}, r"2 integers; got int64 \(3,\)"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(2)}, "2 integers; got float64"),
        ({"arr_0": np.array([None])}, "cannot be read"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DatasetError, match=told):
        read_samples(tmp_path / "a.npz")


def test_a_folder_of_pictures_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_sets, "PART", 3)
    for index, image in enumerate(pictures()):
        Image.fromarray(image).save(tmp_path / f"{index:03d}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    found = read_samples(tmp_path)
    assert np.array_equal(whole(found), pictures())
    assert found.labels is None
    Image.fromarray(pictures(1)[0, :2]).save(tmp_path / "005.png")
    with pytest.raises(DatasetError, match=r"005\.png has the shape \(2, 4, 3\); 000\.png has \(4, 4, 3\)"):
        list(found.parts())
    (tmp_path / "001.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"001\.png cannot be read"):
        list(found.parts())


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    Image.fromarray(pictures(1, 1)[0, ..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(whole(read_samples(tmp_path)), pictures(1, 1))


def test_a_folder_of_classes_has_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(pictures()[index]).save(tmp_path / name / f"{index}.png")
    found = read_samples(tmp_path)
    assert found.labels is not None
    assert (found.labels.tolist(), found.class_names) == ([0, 0, 1, 1], ("cat", "dog"))
    assert np.array_equal(whole(found), pictures()[[0, 1, 0, 1]])


def test_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK")
    for place, told in (("a.npz", "cannot be read"), ("b.npz", "no samples at"), ("c", "no samples at")):
        with pytest.raises(DatasetError, match=told):
            read_samples(tmp_path / place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no images"):
        read_samples(tmp_path / "empty")
