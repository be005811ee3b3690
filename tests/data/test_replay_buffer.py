"""What is written reads back equal, equal data are equal bytes, and nothing damaged is ever taken for data."""

import errno
import functools
import hashlib
import json
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.data.download import array_sha256, verify_arrays
from drifting_policy.data.replay_buffer import ReplayBuffer, concatenate, open_replay, write_replay
from drifting_policy.types import DatasetError

ENDS = np.array([3, 8])
ACTION = np.arange(16, dtype=np.float32).reshape(8, 2)
NAMES = ("demo.zarr", "demo.zarr.zip")


@contextmanager
def refused(words: str, place: Path) -> Iterator[None]:
    with pytest.raises(DatasetError, match=words) as caught:
        yield
    message = str(caught.value)
    assert str(place) in message
    assert "\n" not in message
    assert message[-1] in ".?"


def by_zarr(path: Path, arrays: Mapping[str, Any], ends: Any, *, zarr_format: int = 2, **options: Any) -> Path:
    """A store written without this package; a zip file where the name says so."""
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    root = zarr.open_group(folder, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    config = {"write_empty_chunks": True}
    for key, values in arrays.items():
        root.create_array(f"data/{key}", data=np.asarray(values), config=config, **options)  # type: ignore[arg-type]
    root.create_array("meta/episode_ends", data=np.asarray(ends), config=config)  # type: ignore[arg-type]
    return pack(folder, path)


def pack(folder: Path, path: Path) -> Path:
    if path != folder:
        shutil.make_archive(str(folder), "zip", folder)
        shutil.rmtree(folder)
    return path


def with_value(value: float, *, step: int, dtype: str = "f4") -> np.ndarray:
    values = ACTION.astype(dtype)
    values[step, 1] = value
    return values


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    dtype=st.sampled_from(["<f4", ">f4", "f2", "f8", "u1", "i8", "?"]),
    shape=st.sampled_from([(), (1,), (3, 2)]),
    zeros=st.booleans(),
    name=st.sampled_from(NAMES),
)
def test_what_is_written_reads_back_equal(
    lengths: list[int], dtype: str, shape: tuple[int, ...], zeros: bool, name: str
) -> None:
    ends = np.cumsum(lengths)
    values = (np.random.default_rng(len(lengths)).normal(size=(ends[-1], *shape)) * 9).astype(dtype) * np.dtype(dtype).type(
        not zeros
    )
    with tempfile.TemporaryDirectory() as folder:
        buffer = open_replay(write_replay(Path(folder) / name, {"x": values, "other": values[::-1]}, ends))
    x = buffer.arrays["x"]
    assert x.dtype == (np.float32 if values.dtype.kind == "f" else values.dtype)
    np.testing.assert_array_equal(x, values.astype(x.dtype))
    np.testing.assert_array_equal(buffer.arrays["other"], x[::-1])
    assert (buffer.num_steps, buffer.num_episodes, buffer.lengths.tolist()) == (sum(lengths), len(lengths), lengths)
    assert buffer.starts.tolist() == [sum(lengths[:i]) for i in range(len(lengths))]
    np.testing.assert_array_equal(np.concatenate([buffer.episode(i)["x"] for i in range(len(lengths))]), x)
    assert [len(buffer.episode(i)["x"]) for i in range(len(lengths))] == lengths


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("zarr_format", "options"),
    [(2, {}), (3, {}), (2, {"chunks": (3, 1)}), (3, {"chunks": (3, 1)}), (3, {"chunks": (2, 1), "shards": (4, 2)})],
)
def test_stores_of_other_programs_read_equal(name: str, zarr_format: int, options: dict[str, Any], tmp_path: Path) -> None:
    arrays = {"action": ACTION, "wide": ACTION.astype(np.float64) / 3}
    buffer = open_replay(by_zarr(tmp_path / name, arrays, ENDS.astype(np.int32), zarr_format=zarr_format, **options))
    np.testing.assert_array_equal(buffer.arrays["action"], ACTION)
    np.testing.assert_array_equal(buffer.arrays["wide"], (ACTION.astype(np.float64) / 3).astype(np.float32))
    assert buffer.episode_ends.tolist() == [3, 8]


@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_many_chunks_and_attributes_survive(name: str, tmp_path: Path) -> None:
    values = np.arange(10_000, dtype=np.int64)
    values[:5000] = 0  # the first chunk is all zeros
    path = write_replay(tmp_path / "new" / name, {"x": values}, np.array([10_000]), attributes={"rate": 10})
    np.testing.assert_array_equal(open_replay(path).arrays["x"], values)
    store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else zarr.storage.LocalStore(path, read_only=True)
    assert dict(zarr.open_group(store, mode="r").attrs) == {"rate": 10}
    store.close()
    assert list(path.parent.iterdir()) == [path]


def test_equal_data_are_equal_bytes(tmp_path: Path) -> None:
    arrays = {"action": ACTION, "state": ACTION + 1}
    first = write_replay(tmp_path / "a.zarr.zip", arrays, ENDS, attributes={"a": 1})
    second = write_replay(tmp_path / "b.zarr.zip", dict(reversed(arrays.items())), ENDS.astype(np.uint8), attributes={"a": 1})
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # no clock got in
    other = write_replay(tmp_path / "c.zarr.zip", {**arrays, "state": ACTION + 2}, ENDS, attributes={"a": 1})
    assert first.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (ACTION[:7], r"data/x must have 8 steps, as meta/episode_ends says.* its shape is \(7, 2\)"),
        (np.repeat(ACTION, 2, 0), r"its shape is \(16, 2\)"),
        (ACTION.T, r"its shape is \(2, 8\)"),
        (np.float32(8), r"its shape is \(\)"),
        (ACTION[:, :0], r"no empty axis; its shape is \(8, 0\)"),
        (with_value(np.nan, step=2), r"data/x holds NaN or infinity, first at step 2 \(episode 0\)"),
        (with_value(-np.inf, step=3, dtype="f8"), r"first at step 3 \(episode 1\)"),
        (with_value(np.nan, step=7, dtype="f2"), r"first at step 7 \(episode 1\)"),
        (ACTION.astype("c8"), "data/x must be numeric; got dtype complex64"),
        (np.array(["up"] * 8), "data/x must be numeric; got dtype <U2"),
        (ACTION.astype("M8[s]"), "data/x must be numeric; got dtype datetime64"),
    ],
)
def test_arrays_that_are_no_demonstrations_are_neither_read_nor_written(values: Any, words: str, tmp_path: Path) -> None:
    source, target = by_zarr(tmp_path / "source.zarr", {"x": values}, ENDS), tmp_path / "target.zarr.zip"
    with refused(words, source):
        open_replay(source)
    with refused(words, target):
        write_replay(target, {"x": np.asarray(values)}, ENDS)
    assert list(tmp_path.iterdir()) == [source]


def test_numbers_too_large_for_float32_and_text_are_not_read(tmp_path: Path) -> None:
    large = by_zarr(tmp_path / "large.zarr", {"x": with_value(1e300, step=4, dtype="f8")}, ENDS)
    with refused(r"first at step 4 \(episode 1\)", large):
        open_replay(large)
    text = by_zarr(tmp_path / "text.zarr", {"x": np.array(["up", "down"] * 4, dtype="U4")}, ENDS)
    with refused("data/x must be numeric", text):
        open_replay(text)
    with refused("data/x must be numeric; got dtype object", tmp_path / "new.zarr"):
        write_replay(tmp_path / "new.zarr", {"x": np.array([None] * 8)}, ENDS)


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([8, 3], "must ascend; entry 1 is below"),
        ([3, 2, 8], "must ascend; entry 1 is below"),
        ([-1, 8], "must ascend; entry 0 is below"),
        ([0, 8], "episode 0 is empty"),
        ([3, 3, 8], "episode 1 is empty"),
        (np.zeros(0, np.int64), "at least one episode"),
        ([3.0, 8.0], "must be a list of integers; got float64"),
        ([True, True], "must be a list of integers; got bool"),
        ([[3], [8]], r"must be a list of integers; got int64 of shape \(2, 1\)"),
        (8, r"must be a list of integers; got int64 of shape \(\)"),
    ],
)
def test_bad_episode_ends_are_neither_read_nor_written(ends: Any, words: str, tmp_path: Path) -> None:
    source, target = by_zarr(tmp_path / "source.zarr", {"action": ACTION}, ends), tmp_path / "target.zarr.zip"
    with refused(words, source):
        open_replay(source)
    with refused(words, target):
        write_replay(target, {"action": ACTION}, np.asarray(ends))
    assert list(tmp_path.iterdir()) == [source]


def test_missing_arrays_are_named_with_the_closest_one(tmp_path: Path) -> None:
    path = by_zarr(tmp_path / "demo.zarr", {"keypoint": ACTION, "nested/inner": ACTION}, ENDS)
    with refused(r"has no array data/keypoints; it has \['keypoint', 'nested/inner'\]. Did you mean 'keypoint'\?", path):
        open_replay(path, ["keypoint", "keypoints"])
    with refused(r"has no array data/image; it has \['keypoint', 'nested/inner'\]\.$", path):
        open_replay(path, ["image"])
    with refused("has no array data/nested;", path):
        open_replay(path, ["nested"])
    np.testing.assert_array_equal(open_replay(path, ["nested/inner"]).arrays["nested/inner"], ACTION)


def set_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("zarr_format", "damage", "words"),
    [
        (2, lambda f: shutil.rmtree(f / "data"), "has no group 'data'"),
        (2, lambda f: shutil.rmtree(f / "meta"), "has no array meta/episode_ends"),
        (3, lambda f: shutil.rmtree(f / "meta" / "episode_ends"), "has no array meta/episode_ends"),
        (2, lambda f: (shutil.rmtree(f / "data"), shutil.copytree(f / "meta" / "episode_ends", f / "data")), "no group 'data'"),
        (2, lambda f: shutil.copy(f / ".zgroup", shutil.rmtree(f / "meta/episode_ends") or f / "meta"), "has no array meta"),
        (2, lambda f: (f / "data" / "action" / "1.0").unlink(), "incomplete: data/action has 3 of 4 chunks; copy it again"),
        (2, lambda f: (f / "meta" / "episode_ends" / "0").unlink(), "incomplete: meta/episode_ends has 0 of 1 chunks"),
        (3, lambda f: (f / "data" / "action" / "c" / "3" / "0").unlink(), "incomplete: data/action has 3 of 4 chunks"),
        (2, lambda f: (f / "data" / "action" / "1.0").write_bytes(b""), "not a readable zarr store"),
        (3, lambda f: (f / "data" / "action" / "c" / "0" / "0").write_bytes(b"no"), "not a readable zarr store"),
        (2, lambda f: (f / "data" / "action" / ".zarray").write_text("{"), "not a readable zarr store"),
        (2, lambda f: (f / "data" / "action" / ".zarray").unlink(), "has no array data/action|not recognized"),
        (3, lambda f: (f / "zarr.json").unlink(), "not a readable zarr store"),
        (3, lambda f: set_json(f / "data/action/zarr.json", codecs=[{"name": "unheard_of"}]), "not a readable zarr store"),
        (2, lambda f: set_json(f / "data/action/.zarray", shape=[9, 2]), "must have 8 steps|incomplete"),
    ],
)
def test_damaged_stores_are_refused(
    name: str, zarr_format: int, damage: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    folder = by_zarr(tmp_path / "demo.zarr", {"action": ACTION}, ENDS, zarr_format=zarr_format, chunks=(2, 2))
    damage(folder)
    path = pack(folder, tmp_path / name)
    with refused(words, path):
        open_replay(path, ["action"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_name_may_begin_as_another_does(name: str, zarr_format: int, tmp_path: Path) -> None:
    arrays = {"action": ACTION, "action_abs": ACTION + 1, "act": ACTION[:, :1]}
    path = by_zarr(tmp_path / name, arrays, ENDS, zarr_format=zarr_format)
    for key, values in open_replay(path).arrays.items():
        np.testing.assert_array_equal(values, arrays[key])


def test_a_lost_shard_is_noticed_even_where_inner_chunks_overhang(tmp_path: Path) -> None:
    values = np.ones((9, 9), np.float32)
    path = by_zarr(tmp_path / "demo.zarr", {"x": values}, [9], zarr_format=3, chunks=(2, 2), shards=(4, 4))
    (path / "data/x/c/2/2").unlink()
    with refused("incomplete: data/x has 8 of 9 chunks", path):
        open_replay(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "There is no data set at"),
        (lambda path: path.mkdir(), "not a readable zarr store"),
        (lambda path: path.write_text("actions, states"), "not a readable zarr store"),
        (lambda path: path.write_bytes(b""), "not a readable zarr store"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "not a readable zarr store"),
        (lambda path: path.mkdir() or (path / "data").mkdir(), "not a readable zarr store"),
    ],
)
def test_other_things_are_no_stores(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    make(path := tmp_path / "thing.zarr.zip")
    with refused(words, path):
        open_replay(path)


@functools.cache
def whole_zip() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_replay(Path(folder) / "demo.zarr.zip", {"action": ACTION}, ENDS).read_bytes()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), tear=st.booleans())
def test_a_damaged_zip_file_never_gives_other_data(place: float, change: int, tear: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.zarr.zip"
        content = bytearray(whole_zip())
        at = int(place * len(content))
        content[at] ^= change
        path.write_bytes(content[:at] if tear else content)
        try:
            buffer = open_replay(path, ["action"])
        except DatasetError as error:
            buffer, message = None, str(error)
    if buffer is None:
        assert "\n" not in message
    else:
        assert not tear
        np.testing.assert_array_equal(buffer.arrays["action"], ACTION)
        np.testing.assert_array_equal(buffer.episode_ends, ENDS)


def test_nothing_in_a_store_is_unpickled(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    codec = {"id": "pickle", "protocol": 5}
    for filters, compressor in (([codec], None), (None, codec), ([{"id": "zlib", "level": 1}, codec], None)):
        path = by_zarr(tmp_path / "demo.zarr", {"x": ACTION}, ENDS, chunks=(8, 2))
        set_json(path / "data/x/.zarray", filters=filters, compressor=compressor)
        (path / "data/x/0.0").write_bytes(pickle.dumps(Touch()))
        with refused("not a readable zarr store", path):
            open_replay(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "^C"])
@pytest.mark.parametrize(
    ("name", "owner", "method"),
    [
        ("demo.zarr", zarr.Group, "create_array"),
        ("demo.zarr", Path, "rename"),
        ("demo.zarr.zip", zarr.Group, "create_array"),
        ("demo.zarr.zip", zipfile.ZipFile, "writestr"),
        ("demo.zarr.zip", Path, "replace"),
    ],
)
def test_an_interrupted_write_leaves_the_old_store_and_nothing_else(
    name: str, owner: Any, method: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_replay(tmp_path / name, {"action": ACTION}, ENDS)
    original = getattr(owner, method)

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = self.parent == tmp_path and self.suffix in (".draft", ".zip") and self != path if owner is Path else True
        if ours:
            raise error
        return original(self, *args, **kwargs)  # files inside the draft, and the old store put aside and back

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fail)
        if isinstance(error, OSError):
            with refused("could not be written .*No space left on device", path):
                write_replay(path, {"action": ACTION + 1}, ENDS)
        else:
            with pytest.raises(KeyboardInterrupt):
                write_replay(path, {"action": ACTION + 1}, ENDS)
    np.testing.assert_array_equal(open_replay(path).arrays["action"], ACTION)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(open_replay(write_replay(path, {"action": ACTION + 1}, ENDS)).arrays["action"], ACTION + 1)
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_targets_are_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "file.zarr").write_text("mine")
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "folder.zip" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    for target in ("file.zarr", "folder.zip", "file.zarr/demo.zarr"):
        with refused("could not be written", tmp_path / target):
            write_replay(tmp_path / target, {"action": ACTION}, ENDS)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file.zarr").read_text() == "mine"


def test_episodes_are_concatenated() -> None:
    arrays, ends = concatenate({"x": np.full((n, 2), n), "y": np.arange(n)} for n in (3, 1, 2))
    assert ends.tolist() == [3, 4, 6]
    assert arrays["x"][:, 1].tolist() == [3, 3, 3, 1, 2, 2]
    assert arrays["y"].tolist() == [0, 1, 2, 0, 0, 1]
    with pytest.raises(DatasetError, match="no episode"):
        concatenate([])
    with pytest.raises(DatasetError, match=r"memory: data/y must have 3 steps"):
        ReplayBuffer({"y": np.arange(2)}, np.array([3]))


def pictures(dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 16, 18, 3)).astype(dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
@pytest.mark.parametrize("chunks", [1, 3, 8])
def test_images_come_as_bytes_from_the_cache(tmp_path: Path, name: str, dtype: str, chunks: int) -> None:
    place = by_zarr(tmp_path / name, {"img": pictures(dtype)}, ENDS, chunks=(chunks, 16, 18, 3))
    for _ in range(2):
        images = open_replay(place).arrays["img"]
        assert isinstance(images, np.memmap)
        assert images.dtype == np.uint8
        assert np.array_equal(images, pictures())
    assert array_sha256(images) == hashlib.sha256(pictures().tobytes()).hexdigest()
    assert array_sha256(images[::-1]) == hashlib.sha256(pictures()[::-1].tobytes()).hexdigest()
    assert array_sha256(images[2:]) == hashlib.sha256(pictures()[2:].tobytes()).hexdigest()
    verify_arrays(open_replay(place), {"img": array_sha256(pictures())})
    with refused("'img' is not the published data", place):
        verify_arrays(open_replay(place), {"img": array_sha256(pictures()[::-1])})


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, np.nan, np.inf])
def test_floats_that_are_no_bytes_are_no_images(tmp_path: Path, value: float) -> None:
    images = pictures("f4")
    images[5, 1, 2, 0] = value
    place = by_zarr(tmp_path / "demo.zarr", {"img": images, "action": ACTION}, ENDS)
    with refused(r"data/img must be images of levels 0, 1, ... 255; step 5 holds others\.", place):
        open_replay(place)
    assert np.array_equal(open_replay(place, ["action"]).arrays["action"], ACTION)  # nobody asked for the images
