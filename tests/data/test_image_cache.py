"""The image cache: whole or absent, and bound to the content of its source."""

import io
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from drifting_policy.data.image_cache import cache_folder, cached_images
from drifting_policy.types import DatasetError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
SHAPE: tuple[int, int, int, int] = (10, 6, 5, 3)


def blocks() -> Iterator[np.ndarray]:
    yield IMAGES[:4]
    yield IMAGES[4:]


def never() -> Iterator[np.ndarray]:
    raise AssertionError("the cache was there")


def slowly(folder: Path, source: Path) -> None:
    """What a second process does: build in many small steps."""

    def one_by_one() -> Iterator[np.ndarray]:
        for image in IMAGES:
            time.sleep(0.02)
            yield image[None]

    cached_images(source=source, key="k", shape=SHAPE, blocks=one_by_one, folder=folder)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.zip"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def cached(source: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    def call(
        blocks: Callable[[], Iterator[np.ndarray]], *, key: str = "k", shape: tuple[int, int, int, int] = SHAPE
    ) -> np.ndarray:
        return cached_images(source=source, key=key, shape=shape, blocks=blocks, folder=tmp_path / "cache")

    return call


def test_images_are_built_once_and_mapped_read_only(cached: Callable[..., np.ndarray], tmp_path: Path) -> None:
    first, second = cached(blocks), cached(never)
    for images in (first, second):
        assert isinstance(images, np.memmap)
        assert images.dtype == np.uint8
        assert not images.flags.writeable
        assert np.array_equal(images, IMAGES)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".draft"] == []


def test_key_content_and_shape_each_have_their_own_file(cached: Callable[..., np.ndarray], source: Path) -> None:
    cached(blocks)
    other = IMAGES[::-1]
    assert np.array_equal(cached(lambda: iter([other]), key="a/k.b"), other)
    assert np.array_equal(cached(lambda: iter([IMAGES[:3]]), shape=(3, 6, 5, 3)), IMAGES[:3])
    source.write_bytes(b"changed")
    assert np.array_equal(cached(lambda: iter([other])), other)
    source.write_bytes(b"content")  # at another time: what it was built from counts, not when
    assert np.array_equal(cached(never), IMAGES)


def test_a_folder_is_known_by_the_content_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "0").write_bytes(b"x")
    options = {"source": folder, "key": "k", "shape": SHAPE, "folder": tmp_path / "cache"}
    cached_images(blocks=blocks, **options)
    cached_images(blocks=never, **options)
    (folder / "a" / "0").rename(folder / "a" / "1")
    assert np.array_equal(cached_images(blocks=lambda: iter([IMAGES[::-1]]), **options), IMAGES[::-1])


@pytest.mark.parametrize("keep", [0, 60, 127, 300, -1])
def test_what_was_cut_off_is_built_again(cached: Callable[..., np.ndarray], tmp_path: Path, keep: int) -> None:
    cached(blocks)
    (file,) = (tmp_path / "cache").glob("*.npy")
    file.write_bytes(file.read_bytes()[:keep])
    assert np.array_equal(cached(blocks), IMAGES)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("the source broke")])
def test_an_interruption_leaves_nothing(cached: Callable[..., np.ndarray], tmp_path: Path, error: BaseException) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield IMAGES[:4]
        raise error

    with pytest.raises((KeyboardInterrupt, OSError), match=r"^(the source broke)?$"):
        cached(broken)
    assert not [path for path in (tmp_path / "cache").iterdir() if ".npy" in path.name]
    assert np.array_equal(cached(blocks), IMAGES)


def test_two_builders_do_not_disturb_each_other_and_a_killed_one_leaves_no_cache(source: Path, tmp_path: Path) -> None:
    context, folder = multiprocessing.get_context("spawn"), tmp_path / "cache"
    builders = [context.Process(target=slowly, args=(folder, source)) for _ in range(3)]
    for builder in builders:
        builder.start()
    while len(list(folder.glob("*.draft"))) < 3:  # all are at work
        time.sleep(0.005)
    os.kill(builders[0].pid or 0, signal.SIGKILL)
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [-signal.SIGKILL, 0, 0]
    images = cached_images(source=source, key="k", shape=SHAPE, blocks=never, folder=folder)
    assert np.array_equal(images, IMAGES)
    (left,) = folder.glob("*.draft")  # of the one that was killed
    os.utime(left, (0, 0))
    next(iter(folder.glob("*.npy"))).unlink()
    cached_images(source=source, key="k", shape=SHAPE, blocks=blocks, folder=folder)
    assert not left.exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([IMAGES[:4], IMAGES[4:].astype(np.float32)], "must be uint8; the block that begins with image 4 is float32"),
        ([IMAGES[:4], IMAGES[4:, :, :4]], r"\(6, 5, 3\) each; the block that begins with image 4 is \(6, 6, 4, 3\)"),
        ([IMAGES[0]], r"block that begins with image 0 is \(6, 5, 3\)"),
        ([IMAGES, IMAGES[:1]], "should be 10 images; there are at least 11"),
        ([IMAGES[:9]], "end after 9 of 10 images"),
        ([], "end after 0 of 10 images"),
    ],
)
def test_wrong_blocks_are_named(cached: Callable[..., np.ndarray], tmp_path: Path, wrong: list[np.ndarray], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        cached(lambda: iter(wrong))
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_impossible_requests_are_named(cached: Callable[..., np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no axis empty"):
        cached(never, shape=(0, 6, 5, 3))
    with pytest.raises(DatasetError, match=r"nowhere cannot be read"):
        cached_images(source=tmp_path / "nowhere", key="k", shape=SHAPE, blocks=never, folder=tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be written .* DRIFTING_POLICY_CACHE"):
        cached_images(source=tmp_path, key="k", shape=SHAPE, blocks=never, folder=Path("/dev/null/cache"))


def test_a_full_disk_is_a_sentence(cached: Callable[..., np.ndarray], tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))  # the kernel refuses to let a file grow beyond
    try:
        with pytest.raises(DatasetError, match=r"cannot be written .*free some space"):
            cached(blocks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in (tmp_path / "cache").iterdir() if ".npy" in path.name]


def test_the_file_is_an_ordinary_npy_file(cached: Callable[..., np.ndarray], tmp_path: Path) -> None:
    cached(blocks)
    (file,) = (tmp_path / "cache").glob("*.npy")
    assert np.array_equal(np.load(io.BytesIO(file.read_bytes())), IMAGES)


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DRIFTING_POLICY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/drifting_policy/images")
