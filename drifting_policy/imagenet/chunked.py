"""Arrays of a zarr store as plain files: written chunk by chunk, and rows of them read without reading a whole chunk."""

import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np

from drifting_policy.atomic import write_json
from drifting_policy.types import DatasetError

GROUP, ARRAY = ".zgroup", ".zarray"  # where zarr looks for what a folder is


@final
class ChunkedArray:
    """An array on a disk, cut along its first axis into files of `chunk` rows, zarr v2 without compression.

    Bytes are stored as they are, because pictures and latents compress badly and every training step wants rows from all over.
    """

    def __init__(self, folder: Path, *, shape: tuple[int, ...], dtype: str, chunk: int) -> None:
        """The array in `folder`, which need not be complete."""
        self.folder, self.shape, self.dtype, self.chunk = folder, shape, np.dtype(dtype).newbyteorder("<"), chunk
        self.row_bytes = int(np.prod(shape[1:])) * self.dtype.itemsize

    @property
    def chunk_files(self) -> list[Path]:
        """The files of all chunks; the last one is as long as the others, and zero where there are no rows."""
        return [self.chunk_file(index) for index in range(-(-self.shape[0] // self.chunk))]

    def chunk_file(self, index: int) -> Path:
        """Where zarr looks for a chunk."""
        return self.folder / ".".join([str(index), *("0" for _ in self.shape[1:])])

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """A copy of the rows of a slice or a vector of integers, or of one row.

        Raises:
            IndexError: a row that does not exist; negative numbers are none.
            DatasetError: a file is gone or cut off.
        """
        chosen = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        if chosen.ndim == 0:
            return self[chosen.reshape(1)][0]
        if chosen.ndim != 1 or (
            chosen.size and (chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= len(self))
        ):
            raise IndexError(f"rows must be integers from 0 to {len(self) - 1}; got {rows}.")
        values = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        breaks = np.flatnonzero((np.diff(chosen) != 1) | (chosen[1:] % self.chunk == 0)) + 1
        edges = [0, *breaks.tolist(), len(chosen)] if len(chosen) else []
        for first, last in pairwise(edges):
            self._read(int(chosen[first]), values[first:last])
        return values

    def _read(self, row: int, target: np.ndarray) -> None:
        """Fill `target` with rows of one chunk."""
        file = self.chunk_file(row // self.chunk)
        try:
            with file.open("rb", buffering=0) as opened:
                opened.seek(row % self.chunk * self.row_bytes)
                read = opened.readinto(target.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise DatasetError(f"{file} cannot be read ({error}); build the cache again.") from error
        if read != target.nbytes:
            raise DatasetError(f"{file} is cut off; build the cache again.")

    def write_chunk(self, index: int, rows: np.ndarray) -> str:
        """Write the rows of a chunk, fewer only in the last one, and return the checksum of its file.

        Raises:
            OSError: the file system refuses; the file is as it was.
        """
        values = np.zeros((self.chunk, *self.shape[1:]), self.dtype)
        values[: len(rows)] = rows
        file = self.chunk_file(index)
        draft = file.with_name(f".{file.name}.draft")
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as opened:
            opened.write(values.data)
            opened.flush()
            os.fsync(opened.fileno())  # what is logged as written must survive a loss of power
        draft.replace(file)
        return hashlib.sha256(values.data).hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """What zarr must know to read the array."""
        about = {"zarr_format": 2, "shape": [*self.shape], "chunks": [self.chunk, *self.shape[1:]], "dtype": self.dtype.str}
        return about | {"compressor": None, "fill_value": 0, "filters": None, "order": "C", "dimension_separator": "."}

    def describe(self) -> None:
        """Write the description."""
        write_json(self.folder / ARRAY, self.description)

    def described(self) -> bool:
        """Whether the description that lies there is that of this array."""
        try:
            return json.loads((self.folder / ARRAY).read_text()) == self.description
        except (OSError, ValueError):
            return False

    def damage(self, index: int, sha256: str | None = None) -> str | None:
        """What is wrong with the file of a chunk, by its length and, if given, its checksum; None if nothing."""
        file = self.chunk_file(index)
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != self.chunk * self.row_bytes:
            return f"{file} is not as long as it was written"
        if sha256 is not None and file_sha256(file) != sha256:
            return f"{file} is not what was written (its checksum is another)"
        return None


def describe_group(folder: Path) -> None:
    """Tell zarr that `folder` holds arrays or other groups."""
    write_json(folder / GROUP, {"zarr_format": 2})


def file_sha256(file: Path) -> str:
    """Checksum of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
