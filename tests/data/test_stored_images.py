"""Images of zarr stores come through the cache, chunk by chunk, equal to what was stored; JPEG 2000 ones too."""

import builtins
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from drifting_policy.data import stored_images
from drifting_policy.data.jpeg2000 import CODEC_ID, Jpeg2000
from drifting_policy.data.replay_buffer import open_replay, write_replay
from drifting_policy.types import DatasetError, MissingPackage

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 16, 20, 3), dtype=np.uint8)
ENDS = np.array([4, 10])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal images in other stores are found in the cache; here they must be read."""
    monkeypatch.setenv("DRIFTING_POLICY_CACHE", str(tmp_path / "cache"))


def store(path: Path, values: np.ndarray, *, zarr_format: Any = 2, **options: Any) -> Path:
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    root.create_array("data/img", data=values, config={"write_empty_chunks": True}, **options)
    root.create_array("meta/episode_ends", data=ENDS)
    return path


@pytest.mark.parametrize(
    ("zarr_format", "options"),
    [
        (2, {"chunks": (1, 16, 20, 3)}),
        (2, {"chunks": (10, 16, 20, 3)}),
        (2, {"chunks": (3, 5, 20, 1)}),
        (3, {"chunks": (2, 16, 20, 3), "shards": (4, 16, 20, 3)}),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_images_come_as_a_memory_map(dtype: str, zarr_format: int, options: dict[str, Any], tmp_path: Path) -> None:
    path = store(tmp_path / "demo.zarr", IMAGES.astype(dtype), zarr_format=zarr_format, **options)
    images = open_replay(path).arrays["img"]
    assert (images.dtype, images.flags.writeable) == (np.uint8, False)
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=(10, 4, 4, 4)),  # transformation matrices
        np.random.default_rng(0).uniform(0, 1, (10, 16, 20, 1)),  # depth
        (IMAGES[..., :1] > 100).astype(np.float32),  # masks
        np.zeros((10, 16, 20, 2), np.uint8),
        np.zeros((10, 16, 20), np.uint8),
    ],
)
def test_other_arrays_of_many_axes_are_no_images(values: np.ndarray, tmp_path: Path) -> None:
    read = open_replay(store(tmp_path / "demo.zarr", values)).arrays["img"]
    assert not isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, values.astype(read.dtype))


def test_levels_that_are_none_are_named(tmp_path: Path) -> None:
    values = IMAGES.astype(np.float32)
    values[7, 2, 2, 1] = 0.5
    with pytest.raises(DatasetError, match=r"data/img must be images of levels 0, 1, ... 255; step 7 holds others"):
        open_replay(store(tmp_path / "demo.zarr", values, chunks=(2, 16, 20, 3)))


def test_no_chunk_is_decoded_twice_and_no_more_than_one_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    original = stored_images.cached_images

    def watched(*, blocks: Callable[[], Iterator[np.ndarray]], **options: Any) -> np.ndarray:
        def counted() -> Iterator[np.ndarray]:
            for block in blocks():
                read.append(len(block))
                yield block

        return original(blocks=counted, **options)

    monkeypatch.setattr(stored_images, "cached_images", watched)
    monkeypatch.setattr(stored_images, "ROWS", 4)
    for chunk, sizes in ((1, [4, 4, 2]), (3, [3, 3, 3, 1]), (7, [7, 3])):
        read.clear()
        open_replay(store(tmp_path / f"{chunk}.zarr", IMAGES, chunks=(chunk, 16, 20, 3)))
        assert read == sizes


def jpeg2000_store(path: Path, **settings: Any) -> Path:
    """A store as Diffusion Policy writes it: a chunk is the code stream of one image, made by imagecodecs alone."""
    imagecodecs = pytest.importorskip("imagecodecs")
    store(path, IMAGES, chunks=(1, 16, 20, 3))
    description = path / "data" / "img" / ".zarray"
    compressor = {"id": CODEC_ID, "level": 0, "numthreads": 1, "verbose": 0, **settings}
    description.write_text(json.dumps(json.loads(description.read_text()) | {"compressor": compressor, "filters": None}))
    for step, image in enumerate(IMAGES):
        stream = imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k", reversible=True)
        (path / "data" / "img" / f"{step}.0.0.0").write_bytes(stream)
    return path


def test_jpeg_2000_images_are_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(open_replay(jpeg2000_store(tmp_path / "demo.zarr")).arrays["img"], IMAGES)
    damaged = jpeg2000_store(tmp_path / "damaged.zarr")
    (damaged / "data" / "img" / "3.0.0.0").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="is not a readable zarr store"):
        open_replay(damaged)


def test_jpeg_2000_images_without_imagecodecs_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = jpeg2000_store(tmp_path / "demo.zarr"), builtins.__import__

    def lacking(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "imagecodecs":
            raise ImportError("no imagecodecs")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(MissingPackage, match=r"pip install 'drifting-policy\[jpeg2000\]'"):
        open_replay(path)


def test_the_codec_gives_back_what_it_took() -> None:
    pytest.importorskip("imagecodecs")
    codec = Jpeg2000(level=0, numthreads=2)
    stream = codec.encode(IMAGES[:1])
    np.testing.assert_array_equal(codec.decode(stream), IMAGES[0])
    out = np.empty((1, 16, 20, 3), np.uint8)
    np.testing.assert_array_equal(codec.decode(stream, out), IMAGES[:1])
    assert codec.get_config() == {"id": CODEC_ID, "level": 0, "numthreads": 2}
    assert numcodecs.get_codec(codec.get_config()).get_config() == codec.get_config()


def test_large_rows_are_written_in_small_chunks_and_read_back(tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (3, 1200, 1200, 3), dtype=np.uint8)
    path = write_replay(tmp_path / "demo.zarr", {"img": large, "x": np.ones((3, 2), np.float32)}, np.array([3]))
    root = zarr.open_group(path, mode="r")
    assert [root[f"data/{key}"].chunks for key in ("img", "x")] == [(1, 1200, 1200, 3), (3, 2)]  # type: ignore[union-attr]
    np.testing.assert_array_equal(open_replay(path).arrays["img"], large)
