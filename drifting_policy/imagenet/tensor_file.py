"""A safetensors file written tensor by tensor, so that no more than one of them need be in memory.

The format (huggingface.co/docs/safetensors): the length of a JSON header as eight bytes, the header, which tells the type, the
shape and the place of each tensor, then their bytes.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 8  # bytes; the header is filled up with spaces
SLAB = 2**24  # bytes that are brought into the order of the file at a time


def write_tensors(file: Path, shapes: Mapping[str, tuple[int, ...]], values: Callable[[str], Iterable[np.ndarray]]) -> None:
    """Write `file`, a tensor of float32 for each name in `shapes`, from the arrays that `values` gives for the name.

    Several arrays for a name follow one another along its first axis. Arrays of any strides and floating-point type are taken.

    Raises:
        ValueError: where the arrays have more or fewer elements than the shape.
        OSError: when the file system refuses.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            for array in values(name):
                for rows in slabs(np.atleast_1d(array)):
                    stream.write(np.ascontiguousarray(rows, dtype="<f4").data)
            if stream.tell() != 8 + len(text) + header[name]["data_offsets"][1]:
                raise ValueError(f"The arrays of '{name}' do not have as many elements as its shape {shapes[name]}.")


def slabs(array: np.ndarray) -> Iterable[np.ndarray]:
    """`array` cut along its first axis into parts of at most SLAB bytes in float32, and at least one row."""
    rows = max(1, SLAB // max(1, 4 * math.prod(array.shape[1:])))
    return (array[begin : begin + rows] for begin in range(0, len(array), rows))
