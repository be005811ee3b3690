"""Headers of a msgpack file, one after another: what lies where is told without reading the bytes of arrays.

The `msgpack` package holds every array twice before it hands it over; the largest file of the release has 10.8 GB.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

from drifting_policy.types import CheckpointError

MAP, ARRAY, STRING, BYTES, EXTENSION, INTEGER, BOOLEAN = (
    "a map",
    "a list",
    "a text",
    "bytes",
    "an extension",
    "an integer",
    "a flag",
)
# First byte: (kind, bytes of the number that follows), by the specification of msgpack.
NUMBERED = {
    **{0xC4: (BYTES, 1), 0xC5: (BYTES, 2), 0xC6: (BYTES, 4), 0xC7: (EXTENSION, 1), 0xC8: (EXTENSION, 2), 0xC9: (EXTENSION, 4)},
    **{0xCC: (INTEGER, 1), 0xCD: (INTEGER, 2), 0xCE: (INTEGER, 4), 0xCF: (INTEGER, 8)},
    **{0xD0: (INTEGER, 1), 0xD1: (INTEGER, 2), 0xD2: (INTEGER, 4), 0xD3: (INTEGER, 8)},
    **{
        0xD9: (STRING, 1),
        0xDA: (STRING, 2),
        0xDB: (STRING, 4),
        0xDC: (ARRAY, 2),
        0xDD: (ARRAY, 4),
        0xDE: (MAP, 2),
        0xDF: (MAP, 4),
    },
}
SIGNED = range(0xD0, 0xD4)
# Kinds whose number is in the first byte: (bytes from, to, kind, what to subtract).
IMMEDIATE = (
    (0x00, 0x7F, INTEGER, 0),
    (0x80, 0x8F, MAP, 0x80),
    (0x90, 0x9F, ARRAY, 0x90),
    (0xA0, 0xBF, STRING, 0xA0),
    (0xC2, 0xC3, BOOLEAN, 0xC2),
    (0xE0, 0xFF, INTEGER, 0x100),
)
LONGEST_ENTRY = 200  # characters of a name in an error
EXTENSION_SIZES = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


@dataclass(frozen=True)
class Header:
    """What begins here: `number` is the value of an integer or flag, the entries of a map or list, the bytes of all others."""

    kind: str
    number: int
    code: int = 0  # of an extension

    @property
    def text(self) -> str:
        """The kind in words."""
        return f"{self.kind} of type {self.code}" if self.kind == EXTENSION else self.kind


@final
class HeaderReader:
    """Reads headers and small values from `begin` to `end` of an open file, and never a byte beyond."""

    def __init__(self, stream: BinaryIO, file: Path, *, begin: int = 0, end: int | None = None) -> None:
        """`file` is named in errors; without `end` it is read as a whole."""
        self.stream, self.file = stream, file
        self.position, self.end = begin, os.fstat(stream.fileno()).st_size if end is None else end
        stream.seek(begin)

    def header(self, entry: str) -> Header:
        """The header that comes next, which belongs to `entry`.

        Raises:
            CheckpointError: the file ends before what it announces, or something begins that weights never hold.
        """
        first = self.take(1, entry)[0]
        if first in EXTENSION_SIZES:
            return self._extension(EXTENSION_SIZES[first], entry)
        if first in NUMBERED:
            kind, size = NUMBERED[first]
            number = int.from_bytes(self.take(size, entry), "big", signed=first in SIGNED)
            return self._extension(number, entry) if kind == EXTENSION else self._checked(Header(kind, number), entry)
        for low, high, kind, zero in IMMEDIATE:
            if low <= first <= high:
                return self._checked(Header(kind, first - zero), entry)
        raise self.refusal(entry, "a map or an array", f"the byte 0x{first:02x}")

    def expect(self, kind: str, entry: str) -> int:
        """The number of the header that comes next, which must be of `kind`.

        Raises:
            CheckpointError: it is of another.
        """
        header = self.header(entry)
        if header.kind != kind:
            raise self.refusal(entry, kind, header.text)
        return header.number

    def text(self, entry: str, *, longest: int) -> str:
        """The text that comes next, of at most `longest` bytes.

        Raises:
            CheckpointError: it is longer, no UTF-8, or something else.
        """
        size = self.expect(STRING, entry)
        if size > longest:
            raise self.refusal(entry, f"a text of at most {longest} bytes", f"one of {size}")
        try:
            return self.take(size, entry).decode()
        except UnicodeDecodeError as error:
            raise self.refusal(entry, "a text in UTF-8", f"bytes that are none ({error.reason})") from error

    def take(self, size: int, entry: str) -> bytes:
        """The next `size` bytes."""
        self._require(size, entry)
        taken = self.stream.read(size)
        self.position += size
        if len(taken) < size:
            raise self.refusal(entry, f"{size} bytes", f"{len(taken)}")
        return taken

    def skip(self, size: int, entry: str) -> int:
        """Where the next `size` bytes begin, which are there and are passed over."""
        self._require(size, entry)
        begin = self.position
        self.position += size
        self.stream.seek(self.position)
        return begin

    def refusal(self, entry: str, expected: str, found: str) -> CheckpointError:
        """The error that says what should be here and what is."""
        return refusal(self.file, entry, expected, f"{found} (before byte {self.position})")

    def _extension(self, size: int, entry: str) -> Header:
        code = int.from_bytes(self.take(1, entry), "big", signed=True)
        return self._checked(Header(EXTENSION, size, code), entry)

    def _checked(self, header: Header, entry: str) -> Header:
        """Nobody may plan for more than there is: an entry of a list takes one byte at least, one of a map two."""
        if header.kind not in (INTEGER, BOOLEAN):
            self._require(header.number * (2 if header.kind == MAP else 1), entry)
        return header

    def _require(self, size: int, entry: str) -> None:
        if size > self.end - self.position:
            raise self.refusal(entry, f"at least {size} more bytes", f"{self.end - self.position}")


def refusal(file: Path, entry: str, expected: str, found: str) -> CheckpointError:
    """The error that says what the entry of a file should be and what it is, in one line."""
    place = f", entry {entry[:LONGEST_ENTRY]!r}" if entry else ""
    return CheckpointError(f"{file}{place}: expected {expected}, found {found}. The file is damaged or holds no weights.")
