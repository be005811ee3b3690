"""Columns of Arrow tables become arrays of the shape of their lists; what is ragged, missing or no number is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.data.columns import count_rows, read_cells, read_columns, values_of
from drifting_policy.data.pictures import BLOCK, in_blocks
from drifting_policy.types import DatasetError

pa = pytest.importorskip("pyarrow", exc_type=ImportError)
pq = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dtype=st.sampled_from(["f4", "f8", "i8", "u1", "?"]),
    fixed=st.lists(st.booleans(), min_size=3, max_size=3),
    cut=st.integers(0, 3),
    parts=st.integers(1, 3),
)
def test_lists_of_any_kind_become_the_same_array(shape: list[int], dtype: str, fixed: list[bool], cut: int, parts: int) -> None:
    values = (np.random.default_rng(0).normal(size=(shape[0] + cut, *shape[1:])) * 9).astype(dtype)
    kind = pa.from_numpy_dtype(values.dtype)
    for size, of_one_size in zip(shape[:0:-1], fixed, strict=False):
        kind = pa.list_(kind, size) if of_one_size else pa.list_(kind)
    column = pa.array(values.tolist(), kind)[cut:]  # a slice begins in the middle of its buffers
    bounds = [len(column) * part // parts for part in range(parts + 1)]
    chunks = pa.chunked_array([column[low:high] for low, high in itertools.pairwise(bounds)])
    for each in (column, chunks):
        read = values_of(each, "x")
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read, values[cut:])


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([1.0, None]), "x holds 1 nulls"),
        (pa.array([[1.0], None]), "x holds 1 nulls"),
        (pa.array([[1.0, None]]), "x holds 1 nulls"),
        (pa.array([[1.0], [1.0, 2.0]]), "x holds lists of several lengths, 1 to 2"),
        (pa.array(["up"]), "x must hold numbers; it holds string"),
        (pa.array([["up"]]), "x must hold numbers; it holds string"),
    ],
)
def test_other_columns_are_refused(column: object, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        values_of(column, "x")


def test_files_follow_each_other(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.parquet" for number in range(3)]
    for number, file in enumerate(files):
        pq.write_table(pa.table({"a.b": [[number, 0.5]] * (number + 1), "text": ["t"] * (number + 1)}), file, row_group_size=1)
    assert count_rows(files) == 6
    assert read_columns(files, ["a.b"])["a.b"][:, 0].tolist() == [0, 1, 1, 2, 2, 2]
    assert [cell[0] for cell in read_cells(files, "a.b", rows=2)] == [0, 1, 1, 2, 2, 2]
    pq.write_table(pa.table({"a.b": [[1.0, 2.0, 3.0]]}), files[1])
    with pytest.raises(DatasetError, match=r"column a.b has rows of several shapes: \[\(2,\), \(3,\)\]"):
        read_columns(files, ["a.b"])
    with pytest.raises(DatasetError, match=r"1.parquet must have one column text; it has 0"):
        read_columns(files[1:], ["text"])


def test_pictures_come_in_blocks() -> None:
    pictures = [np.full((2, 3, 1), number % 256, np.uint8) for number in range(2 * BLOCK + 5)]
    blocks = list(in_blocks(iter(pictures), "x"))
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 5]
    np.testing.assert_array_equal(np.concatenate(blocks), pictures)
    with pytest.raises(DatasetError, match="x has pictures of several shapes"):
        list(in_blocks([*pictures[:3], np.zeros((9, 9, 1), np.uint8)], "x"))
