"""The weights of the release: a msgpack file of nested maps of arrays, read array by array and never executed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, final

import numpy as np

from drifting_policy.imagenet.msgpack_headers import (
    ARRAY,
    BOOLEAN,
    BYTES,
    EXTENSION,
    INTEGER,
    MAP,
    HeaderReader,
    refusal,
)
from drifting_policy.types import CheckpointError

ARRAYS = (1, 3)  # extension types of an array and of a NumPy scalar, whose payload is the same
CHUNKED = "__msgpack_chunked_array__"  # a key of the map that stands for an array of more than 2**30 bytes
NUMBERS = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in NUMBERS}
LONGEST_NAME, DEEPEST, MOST_ENTRIES, MOST_AXES = 1024, 32, 1_000_000, 16


@dataclass(frozen=True)
class Extent:
    """`size` bytes of a file, from `begin` on."""

    begin: int
    size: int


@dataclass(frozen=True)
class StoredArray:
    """The shape and type of an array, and where its bytes lie, part after part."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[Extent, ...]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)


Node: TypeAlias = dict[str, Any] | Extent | int  # the values of a map are nodes again


@final
class WeightFile(Mapping[str, np.ndarray]):
    """The arrays of a file by their names; each is read when it is asked for, so that no more than one need be in memory.

    Names are the keys of the nested maps, joined by slashes; a single outermost map "params" is left out.
    `arrays` tells shape and type of each.
    """

    def __init__(self, file: str | Path, *, skip: Sequence[str] = ()) -> None:
        """Without the arrays in the maps `skip`, which are not looked into.

        Raises:
            CheckpointError: the file is missing, ends early, goes on after its end, or holds something else than arrays.
        """
        self.file = Path(file)
        try:
            with self.file.open("rb") as stream:
                tree = read_tree(HeaderReader(stream, self.file))
                inner = tree["params"] if list(tree) == ["params"] else tree
                self.arrays = {
                    name: locate(node, name, stream, self.file)
                    for name, node in flatten(inner if isinstance(inner, dict) else tree)
                    if not any(name.startswith(f"{folder}/") for folder in skip)
                }
        except OSError as error:
            raise CheckpointError(f"The weights {self.file} cannot be read ({error.strerror or error}).") from error

    def __getitem__(self, name: str) -> np.ndarray:
        """The array `name`.

        Raises:
            CheckpointError: the file cannot be read any more, or became shorter.
        """
        stored = self.arrays[name]
        values = np.empty(math.prod(stored.shape), stored.dtype)
        rest = values.view(np.uint8).data
        try:
            with self.file.open("rb") as stream:
                for part in stored.parts:
                    stream.seek(part.begin)
                    if (found := stream.readinto(rest[: part.size])) != part.size:
                        raise refusal(self.file, name, f"{part.size} bytes from byte {part.begin} on", f"{found}")
                    rest = rest[part.size :]
        except OSError as error:
            raise CheckpointError(f"The weights {self.file} cannot be read ({error.strerror or error}).") from error
        return values.reshape(stored.shape)

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the file."""
        return iter(self.arrays)

    def __len__(self) -> int:
        """How many arrays there are."""
        return len(self.arrays)


def read_tree(reader: HeaderReader) -> dict[str, Node]:
    """The nested maps of a file, with extents in place of arrays.

    Raises:
        CheckpointError: the file ends early, goes on after its end, or is no map of maps, arrays and small integers.
    """
    tree = read_map(reader, reader.expect(MAP, ""), entries=count(1))
    if reader.position != reader.end:
        raise reader.refusal("", "the end of the file", f"{reader.end - reader.position} more bytes")
    return tree


def read_map(reader: HeaderReader, size: int, *, entries: Iterator[int], name: str = "", depth: int = 1) -> dict[str, Node]:
    """The `size` entries that come next, those of the map `name`; `entries` counts those of the whole file.

    Raises:
        CheckpointError: where they are no maps, arrays and integers, under names that differ.
    """
    if depth > DEEPEST:
        raise reader.refusal(name, f"at most {DEEPEST} maps inside each other", "more")
    found: dict[str, Node] = {}
    for _ in range(size):
        key = reader.text(name, longest=LONGEST_NAME)
        entry = f"{name}/{key}" if name else key
        if not key or "/" in key or key in found:
            raise reader.refusal(entry, "a name without slashes that occurs once", f"{key!r}")
        if next(entries) > MOST_ENTRIES:
            raise reader.refusal(entry, f"at most {MOST_ENTRIES} entries", "more")
        header = reader.header(entry)
        if header.kind == MAP:
            found[key] = read_map(reader, header.number, entries=entries, name=entry, depth=depth + 1)
        elif header.kind == EXTENSION and header.code in ARRAYS:
            found[key] = Extent(reader.skip(header.number, entry), header.number)
        elif header.kind in (INTEGER, BOOLEAN):
            found[key] = header.number
        else:
            raise reader.refusal(entry, "a map or an array", header.text)
    return found


def flatten(tree: Mapping[str, Node], prefix: str = "") -> Iterator[tuple[str, Node]]:
    """The names, joined by slashes, and nodes of what should be arrays: all but maps, yet also maps of chunks."""
    for key, node in tree.items():
        if isinstance(node, dict) and CHUNKED not in node:
            yield from flatten(node, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", node


def locate(node: Node, name: str, stream: BinaryIO, file: Path) -> StoredArray:
    """Shape, type and place of the array `name`, for which `node` stands in the tree.

    Raises:
        CheckpointError: it is no array, a chunk of it is missing, or its bytes are not as many as its shape needs.
    """
    if isinstance(node, Extent):
        return read_payload(HeaderReader(stream, file, begin=node.begin, end=node.begin + node.size), name)
    if not isinstance(node, dict) or node.keys() != {CHUNKED, "shape", "chunks"}:
        keys = f"the keys {sorted(node)}" if isinstance(node, dict) else f"the number {node}"
        raise refusal(file, name, "an array, or its shape and chunks", keys)
    sizes, chunks = numbered(node["shape"], f"{name}/shape", file), numbered(node["chunks"], f"{name}/chunks", file)
    shape = tuple(size for size in sizes if isinstance(size, int))
    if len(shape) < len(sizes) or not chunks or not all(isinstance(chunk, Extent) for chunk in chunks):
        raise refusal(file, name, "integers as its shape and arrays as its chunks", "something else")
    parts = [locate(chunk, f"{name}/chunks/{i}", stream, file) for i, chunk in enumerate(chunks)]
    if len({part.dtype for part in parts}) > 1:
        raise refusal(file, name, "chunks of one type", ", ".join(sorted({part.dtype.name for part in parts})))
    whole = StoredArray(shape, parts[0].dtype, tuple(chain.from_iterable(part.parts for part in parts)))
    check_size(whole, name, file)
    return whole


def numbered(node: Node, name: str, file: Path) -> list[Node]:
    """The values of a map with the keys "0", "1" and so on, in the order of these numbers.

    Raises:
        CheckpointError: it is something else, or one of them is missing.
    """
    if not isinstance(node, dict) or node.keys() != {str(i) for i in range(len(node))}:
        raise refusal(file, name, "a map with the keys 0, 1, ... without a gap", "something else")
    return [node[str(i)] for i in range(len(node))]


def read_payload(reader: HeaderReader, name: str) -> StoredArray:
    """The array whose shape, type and bytes come next, and nothing after them.

    Raises:
        CheckpointError: they are something else, or do not fit each other.
    """
    if (values := reader.expect(ARRAY, name)) != 3:
        raise reader.refusal(name, "shape, type and bytes of an array", f"{values} values")
    if (axes := reader.expect(ARRAY, name)) > MOST_AXES:
        raise reader.refusal(name, f"at most {MOST_AXES} axes", f"{axes}")
    shape = tuple(reader.expect(INTEGER, name) for _ in range(axes))
    kind = reader.text(name, longest=LONGEST_NAME)
    if kind not in DTYPES:
        raise reader.refusal(name, f"one of the types {', '.join(DTYPES)}", f"{kind!r}")
    size = reader.expect(BYTES, name)
    stored = StoredArray(shape, DTYPES[kind], (Extent(reader.skip(size, name), size),))
    if reader.position != reader.end:
        raise reader.refusal(name, "the end of the array", f"{reader.end - reader.position} more bytes")
    check_size(stored, name, reader.file)
    return stored


def check_size(stored: StoredArray, name: str, file: Path) -> None:
    """Refuse an array that is empty, or has more or fewer bytes than its shape and type need.

    Raises:
        CheckpointError: names both.
    """
    if min(stored.shape, default=1) < 1:
        raise refusal(file, name, "sizes of at least 1", f"the shape {stored.shape}")
    if (needed := math.prod(stored.shape) * stored.dtype.itemsize) != stored.size:
        raise refusal(file, name, f"{needed} bytes for shape {stored.shape} of {stored.dtype.name}", f"{stored.size}")
