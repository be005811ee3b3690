"""Weights of the release: read as they were written, and refused in one sentence where anything is not as it should be."""

import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drifting_policy.imagenet.weights import CHUNKED, DTYPES, WeightFile
from drifting_policy.types import CheckpointError

ROOMY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def leaf(values: Any, *, code: int = 1, **changes: Any) -> msgpack.ExtType:
    """An array as the release stores it; `changes` lie about it."""
    array = np.asarray(values)
    told = {"shape": array.shape, "dtype": array.dtype.name, "data": array.tobytes()} | changes
    return msgpack.ExtType(code, msgpack.packb(list(told.values())))


def chunked(values: np.ndarray, *, elements: int, **changes: Any) -> dict[str, Any]:
    """The same in parts of so many elements."""
    flat = values.reshape(-1)
    parts = {str(i): leaf(flat[begin : begin + elements]) for i, begin in enumerate(range(0, flat.size, elements))}
    return {CHUNKED: True, "shape": {str(i): n for i, n in enumerate(values.shape)}, "chunks": parts} | changes


RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(2, 3)).astype(np.float32)
LARGE = RNG.normal(size=(5, 7)).astype(np.float32)
TREE = {
    "decoder": {"head": {"kernel": leaf(KERNEL), "scale": leaf(np.float64(2.5), code=3)}},
    "encoder": {"large": chunked(LARGE, elements=12), "steps": leaf(np.arange(9))},
}
EXPECTED = {"decoder/head/kernel": KERNEL, "decoder/head/scale": np.float64(2.5), "encoder/large": LARGE}
EXPECTED |= {"encoder/steps": np.arange(9)}
PACKED = msgpack.packb(TREE)


def written(folder: Path, content: bytes) -> Path:
    file = folder / "ema_params.msgpack"
    file.write_bytes(content)
    return file


def test_arrays_are_those_that_were_written(tmp_path: Path) -> None:
    weights = WeightFile(written(tmp_path, PACKED))
    assert list(weights) == list(EXPECTED)
    assert len(weights) == len(EXPECTED)
    for name, values in weights.items():
        assert values.dtype == EXPECTED[name].dtype
        np.testing.assert_array_equal(values, EXPECTED[name], strict=True)
        assert weights.arrays[name].shape == values.shape
        assert weights.arrays[name].size == values.nbytes


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_read(name: str, tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3).astype(name)
    read = WeightFile(written(tmp_path, msgpack.packb({"x": leaf(values)})))["x"]
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


def test_one_outermost_map_called_params_is_left_out(tmp_path: Path) -> None:
    assert list(WeightFile(written(tmp_path, msgpack.packb({"params": TREE})))) == list(EXPECTED)
    assert list(WeightFile(written(tmp_path, msgpack.packb({"params": {"params": {"x": leaf(1.0)}}})))) == ["params/x"]
    assert list(WeightFile(written(tmp_path, msgpack.packb({"params": leaf(1.0)})))) == ["params"]
    assert list(WeightFile(written(tmp_path, msgpack.packb({"params": {"x": leaf(1.0)}, "y": leaf(1.0)})))) == ["params/x", "y"]


def test_what_is_skipped_is_not_looked_into(tmp_path: Path) -> None:
    tree = {"decoder": {"head": msgpack.ExtType(1, b"no array at all")}, "decoders": leaf(1.0), **TREE["encoder"]}
    file = written(tmp_path, msgpack.packb({"params": tree}))
    assert list(WeightFile(file, skip=("decoder", "fc"))) == ["decoders", "large", "steps"]
    with pytest.raises(CheckpointError, match="decoder/head"):
        WeightFile(file)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tree_is_read_as_the_msgpack_package_reads_it(data: st.DataObject, tmp_path: Path) -> None:
    names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=40).filter(
        lambda n: n != "params"
    )
    shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
    leaves = shapes.map(lambda shape: leaf(RNG.normal(size=shape).astype(np.float32)))
    tree = data.draw(st.dictionaries(names, st.recursive(leaves, lambda inner: st.dictionaries(names, inner), max_leaves=9)))
    content = msgpack.packb(tree)

    def decode(code: int, payload: bytes) -> np.ndarray:
        shape, dtype, raw = msgpack.unpackb(payload)
        return np.frombuffer(raw, dtype).reshape(shape)

    def walk(node: Any, prefix: str = "") -> dict[str, np.ndarray]:
        inner = [walk(value, f"{prefix}{key}/") for key, value in node.items()] if isinstance(node, dict) else []
        return {k: v for part in inner for k, v in part.items()} if isinstance(node, dict) else {prefix[:-1]: node}

    expected = walk(msgpack.unpackb(content, ext_hook=decode))
    read = dict(WeightFile(written(tmp_path, content)))
    assert list(read) == list(expected)
    assert all(np.array_equal(read[name], expected[name]) for name in read)


@ROOMY
@given(edits=st.lists(st.tuples(st.integers(0, len(PACKED) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_file_is_read_or_refused(edits: list[tuple[int, int]], tmp_path: Path) -> None:
    content = bytearray(PACKED)
    for place, value in edits:
        content[place] = value
    assert_read_or_refused(written(tmp_path, bytes(content)))


@ROOMY
@given(place=st.integers(0, len(PACKED)), cut=st.integers(0, 40), inserted=st.binary(max_size=12))
def test_a_file_with_a_gap_or_something_in_between_is_read_or_refused(
    place: int, cut: int, inserted: bytes, tmp_path: Path
) -> None:
    assert_read_or_refused(written(tmp_path, PACKED[:place] + inserted + PACKED[place + cut :]))


@ROOMY
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path: Path) -> None:
    assert_read_or_refused(written(tmp_path, content))


def assert_read_or_refused(file: Path) -> None:
    """Arrays of known types that fit into the file, or one sentence that names it."""
    told, read = "", {}
    try:
        read = dict(WeightFile(file))
    except CheckpointError as error:
        told = str(error)
    assert not told or (str(file) in told and "expected" in told and "\n" not in told)
    assert sum(values.nbytes for values in read.values()) <= file.stat().st_size
    assert all(values.dtype in DTYPES.values() for values in read.values())


def test_every_shorter_and_every_longer_file_is_refused(tmp_path: Path) -> None:
    for size in range(len(PACKED)):
        with pytest.raises(CheckpointError, match="expected"):
            WeightFile(written(tmp_path, PACKED[:size]))
    for more in (b"\0", PACKED):
        with pytest.raises(CheckpointError, match=f"found {len(more)} more bytes"):
            WeightFile(written(tmp_path, PACKED + more))


def nested(depth: int) -> dict[str, Any]:
    return {"x": nested(depth - 1) if depth else leaf(1.0)}


def pairs(*entries: tuple[Any, Any]) -> bytes:
    """A map that may say a key twice."""
    packer = msgpack.Packer()
    return packer.pack_map_header(len(entries)) + b"".join(packer.pack(part) for entry in entries for part in entry)


WRONG: dict[str, tuple[bytes, str]] = {
    "a list": (msgpack.packb([1, 2]), "expected a map, found a list"),
    "a huge map": (b"\xdf\xff\xff\xff\xff", "expected at least 8589934590 more bytes, found 0"),
    "a huge array": (b"\x81\xa1x\xc9\xff\xff\xff\xff\x01", "'x': expected at least 4294967295 more bytes, found 0"),
    "a huge name": (b"\x81\xdb\xff\xff\xff\xffx", "expected at least 4294967295 more bytes, found 1"),
    "a long name": (pairs(("x" * 2000, leaf(1.0))), "a text of at most 1024 bytes, found one of 2000"),
    "a number as a name": (pairs((3, leaf(1.0))), "expected a text, found an integer"),
    "bytes as a name": (pairs((b"x", leaf(1.0))), "expected a text, found bytes"),
    "a name that is no text": (b"\x81\xa1\xff\xc0", "expected a text in UTF-8"),
    "no name": (pairs(("", leaf(1.0))), "a name without slashes"),
    "a name with a slash": (pairs(("a/b", leaf(1.0))), "a name without slashes"),
    "a name with a new line": (pairs(("a\nb", 1.5)), r"entry 'a\\nb'"),
    "a name twice": (pairs(("x", leaf(1.0)), ("x", leaf(2.0))), "'x': expected a name .* that occurs once"),
    "deep maps": (msgpack.packb(nested(40)), "at most 32 maps inside each other"),
    "nothing": (pairs(("x", None)), "'x': expected a map or an array, found the byte 0xc0"),
    "a number": (pairs(("x", 7)), "'x': expected an array, or its shape and chunks, found the number 7"),
    "a fraction": (pairs(("x", 1.5)), "found the byte 0xcb"),
    "a complex number": (pairs(("x", leaf(1j, code=2))), "found an extension of type 2"),
    "a time": (pairs(("x", msgpack.Timestamp(1))), "found an extension of type -1"),
    "no array": (pairs(("x", msgpack.ExtType(1, msgpack.packb({})))), "'x': expected a list, found a map"),
    "half an array": (pairs(("x", msgpack.ExtType(1, msgpack.packb([[2], "float32"])))), "shape, type and bytes .*found 2 val"),
    "more after an array": (pairs(("x", msgpack.ExtType(1, leaf(1.0).data + b"\0"))), "the end of the array, found 1 more"),
    "another type": (pairs(("x", leaf(1.0, dtype="object"))), "one of the types float16, .*found 'object'"),
    "a type of another size": (pairs(("x", leaf(1.0, dtype="float32"))), r"4 bytes for shape \(\) of float32, found 8"),
    "a negative shape": (pairs(("x", leaf([1.0], shape=[-1]))), r"sizes of at least 1, found the shape \(-1,\)"),
    "two negative sizes": (pairs(("x", leaf([1.0], shape=[-1, -1]))), "sizes of at least 1"),
    "an empty array": (pairs(("x", leaf(np.zeros((0, 2**40))))), "sizes of at least 1"),
    "a huge shape": (pairs(("x", leaf([1.0], shape=[2**63, 2**63]))), "bytes for shape"),
    "many axes": (pairs(("x", leaf([1.0], shape=[1] * 70))), "at most 16 axes, found 70"),
    "a fraction as a size": (pairs(("x", leaf([1.0], shape=[1.0]))), "found the byte 0xcb"),
    "text in place of bytes": (pairs(("x", leaf([1.0], data="12345678"))), "'x': expected bytes, found a text"),
    "fewer bytes": (pairs(("x", leaf([1.0, 2.0], data=bytes(15)))), r"16 bytes for shape \(2,\) of float64, found 15"),
}
CHUNKS = chunked(LARGE, elements=9)["chunks"]
WRONG_CHUNKS: dict[str, tuple[dict[str, Any], str]] = {
    "the last is missing": (
        {"chunks": {k: v for k, v in CHUNKS.items() if k != "3"}},
        r"140 bytes for shape \(5, 7\).*found 108",
    ),
    "one is missing": ({"chunks": {k: v for k, v in CHUNKS.items() if k != "1"}}, "keys 0, 1, ... without a gap"),
    "none": ({"chunks": {}}, "arrays as its chunks"),
    "no map": ({"chunks": leaf(1.0)}, "x/chunks': expected a map"),
    "maps": ({"chunks": {"0": {"0": leaf(1.0)}}}, "arrays as its chunks"),
    "two types": ({"chunks": CHUNKS | {"3": leaf(np.zeros(4))}}, "chunks of one type, found float32, float64"),
    "no shape": ({"shape": {}}, r"4 bytes for shape \(\)"),
    "an array as a size": ({"shape": {"0": leaf(5), "1": 7}}, "integers as its shape"),
    "a negative shape": ({"shape": {"0": -5, "1": -7}}, "sizes of at least 1"),
    "another key": ({"more": leaf(1.0)}, "its shape and chunks, found the keys"),
}
WRONG |= {
    f"chunks: {name}": (pairs(("x", chunked(LARGE, elements=9) | changes)), told)
    for name, (changes, told) in WRONG_CHUNKS.items()
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, told = WRONG[name]
    with pytest.raises(CheckpointError, match=told) as caught:
        WeightFile(written(tmp_path, content))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_endless_entries_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drifting_policy.imagenet.weights.MOST_ENTRIES", 10)
    with pytest.raises(CheckpointError, match="at most 10 entries"):
        WeightFile(written(tmp_path, msgpack.packb({f"{i}": leaf(1.0) for i in range(11)})))
    assert len(WeightFile(written(tmp_path, msgpack.packb({f"{i}": leaf(1.0) for i in range(10)})))) == 10


def shorten(file: Path) -> None:
    os.truncate(file, len(PACKED) - 1)


@pytest.mark.parametrize("change", [Path.unlink, shorten])
def test_a_file_that_changes_after_it_was_opened_is_told(change: Callable[[Path], None], tmp_path: Path) -> None:
    weights = WeightFile(written(tmp_path, PACKED))
    change(weights.file)
    with pytest.raises(CheckpointError, match=r"ema_params\.msgpack"):
        weights["encoder/steps"]


@pytest.mark.parametrize("place", ["", "absent/ema_params.msgpack"])
def test_no_file_is_told(place: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        WeightFile(tmp_path / place)


def test_opening_a_large_file_reads_no_array(tmp_path: Path) -> None:
    """A sparse file of 4 GiB: where arrays were read, this would take minutes, and memory that is not there."""
    size = 2**30
    head = (
        msgpack.packb([[size // 4], "float32"])[: -0 or None].replace(b"\x92", b"\x93", 1) + b"\xc6" + struct.pack(">I", size)
    )
    file = tmp_path / "ema_params.msgpack"
    with file.open("wb") as stream:
        stream.write(b"\x84")
        for name in "abcd":
            stream.write(msgpack.packb(name) + b"\xc9" + struct.pack(">Ib", len(head) + size, 1) + head)
            stream.seek(size, os.SEEK_CUR)
        stream.truncate()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = WeightFile(file)
    assert [array.shape for array in weights.arrays.values()] == [(size // 4,)] * 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB


@pytest.mark.parametrize("name", ["gen_shared", "gen_shared_chunked"])
def test_released_weights_are_the_stored_ones(name: str, shared: Path) -> None:
    golden = dict(np.load(shared / "golden" / "generator_tiny.npz"))
    weights = WeightFile(shared / "golden" / "ckpt" / name / "params_ema" / "ema_params.msgpack")
    expected = {key.removeprefix("base/params/"): value for key, value in golden.items() if key.startswith("base/params/")}
    assert set(weights) == set(expected)
    assert all(np.array_equal(values, expected[key]) for key, values in weights.items())
