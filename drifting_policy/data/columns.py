"""Columns of Parquet and Arrow files as NumPy arrays."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy.data.refusals import first_line
from drifting_policy.types import DatasetError, MissingPackage

ROWS_PER_BYTE = 64  # no data set of moving things is compressed that well; a file that claims it would only fill the memory


def pyarrow_module(name: str) -> Any:
    """The module pyarrow.`name`.

    Raises:
        MissingPackage: where pyarrow is missing, or is a release that does not work with the installed NumPy.
    """
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{name}")
    except ImportError as error:
        raise MissingPackage(
            f"Reading Parquet and Arrow files needs pyarrow, pip install 'drifting-policy[formats]' ({first_line(error)})."
        ) from error


def count_rows(files: Sequence[Path]) -> int:
    """Rows that Parquet files claim to hold.

    Raises:
        DatasetError: where a file claims more than can be in it.
    """
    parquet, total = pyarrow_module("parquet"), 0
    for file in files:
        with parquet.ParquetFile(file) as opened:
            rows = opened.metadata.num_rows
        if not 0 <= rows <= ROWS_PER_BYTE * file.stat().st_size:
            raise DatasetError(f"{file} claims {rows} rows, which cannot be in {file.stat().st_size} bytes.")
        total += rows
    return total


def read_columns(files: Sequence[Path], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Numeric columns of Parquet files, one file after the other, each an array "n ..."; ask `count_rows` first.

    Raises:
        DatasetError: names the file and the column at fault.
    """
    parts: dict[str, list[np.ndarray]] = {column: [] for column in columns}
    for file in files:
        with pyarrow_module("parquet").ParquetFile(file) as opened:
            check_columns(opened.schema_arrow.names, columns, file)
            table = opened.read(columns=list(columns), use_threads=False)
        for column in columns:
            parts[column].append(values_of(table.column(column), f"{file}: column {column}"))
    for column, values in parts.items():
        if len(shapes := {part.shape[1:] for part in values}) > 1:
            raise DatasetError(f"{files[0].parent}: column {column} has rows of several shapes: {sorted(shapes)}.")
    return {column: np.concatenate(values) for column, values in parts.items()}


def read_cells(files: Sequence[Path], column: str, *, rows: int) -> Iterator[Any]:
    """The cells of one column of Parquet files as Python values, read `rows` at a time."""
    for file in files:
        with pyarrow_module("parquet").ParquetFile(file) as opened:
            check_columns(opened.schema_arrow.names, [column], file)
            for batch in opened.iter_batches(batch_size=rows, columns=[column], use_threads=False):
                yield from batch.column(0).to_pylist()


def check_columns(present: Sequence[str], wanted: Sequence[str], file: Path) -> None:
    """Refuse a file that lacks one of the columns `wanted`, or has two of its name.

    Raises:
        DatasetError: names the file and the column.
    """
    for column in wanted:
        if present.count(column) != 1:
            raise DatasetError(f"{file} must have one column {column}; it has {present.count(column)}.")


def values_of(column: Any, what: str) -> np.ndarray:
    """A column of numbers, or of lists of numbers of one length, as an array "n ...".

    Raises:
        DatasetError: where it holds nulls, lists of several lengths, or no numbers.
    """
    arrow = pyarrow_module("lib")
    array = column.combine_chunks() if isinstance(column, arrow.ChunkedArray) else column
    shape = [len(array)]
    while True:
        array = array.storage if isinstance(array, arrow.ExtensionArray) else array
        if array.null_count:
            raise DatasetError(f"{what} holds {array.null_count} nulls.")
        if isinstance(array, arrow.FixedSizeListArray):
            shape.append(array.type.list_size)
        elif isinstance(array, arrow.ListArray | arrow.LargeListArray):
            lengths = np.diff(array.offsets.to_numpy())
            if len(set(lengths.tolist())) > 1:
                raise DatasetError(f"{what} holds lists of several lengths, {lengths.min()} to {lengths.max()}.")
            shape.append(int(lengths[0]) if len(lengths) else 0)
        else:
            break
        array = array.flatten()
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub":
        raise DatasetError(f"{what} must hold numbers; it holds {array.type}.")
    return values.reshape(shape)
