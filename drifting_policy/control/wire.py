"""Messages between a policy server and its clients: msgpack maps in which arrays are maps of plain bytes.

The encoding is the one that openpi's clients speak. An array is a map with four keys of type bytes: `__ndarray__` true, `data`
its C-order bytes, `dtype` NumPy's `dtype.str`, `shape` its sizes; a NumPy scalar is one with `__npgeneric__` true, `data` its
plain value, and `dtype`. Everything else is what msgpack has: maps whose keys are str or bytes, lists, str, bytes, int, float,
bool, None.

A message may come from anybody. What is decoded is plain data and read-only arrays of numbers, text and times; nothing is
unpickled and nothing evaluated, and the memory that a message takes is bounded by its own length and a few MB.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from drifting_policy.types import MissingPackage, UserError

MAX_DEPTH = 16  # containers within containers
MAX_LENGTH = 1024  # entries of one list or map; also what a length that is claimed, not sent, can make msgpack set aside
MAX_VALUES = 65_536  # values in one message; an array is few of them, however large
MAX_AXES = 32  # NumPy 1.x has no more

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
# The dtypes that may travel, as `dtype.str` writes them: no objects, no structures, no complex numbers, none without size.
ALLOWED = re.compile(
    r"\|b1|[<>|][iu]1|[<>][iu][248]|[<>]f(?:2|4|8|12|16)|[<>|][SU][1-9][0-9]{0,6}"
    r"|[<>][mM]8(?:\[(?:[1-9][0-9]{0,5})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)
SCALARS = frozenset("biuf")
TOO_MANY = f"The message holds more than {MAX_VALUES} values; send numbers as arrays."


class WireError(UserError):
    """A message that cannot be sent or read."""


def encode(value: Any) -> bytes:
    """The message that says `value`: plain values, NumPy arrays and scalars, in maps and sequences.

    Raises:
        WireError: on an array of objects, structures or complex numbers, a map with other keys than str or bytes, another type,
            or more than one message may hold.
    """
    msgpack = _msgpack()
    _check(value)
    try:
        message: bytes = msgpack.packb(value, default=_as_map)
    except (ValueError, OverflowError) as error:
        raise WireError(f"The message cannot be written ({_first_line(error)}); send arrays, numbers and text.") from error
    return message


def decode(message: bytes) -> Any:
    """What `encode` was given, from anybody's bytes: tuples come back as lists, arrays as read-only ones; copy where you write.

    Raises:
        WireError: on bytes that are no message, an array whose parts do not fit together, or more than one message may hold.
    """
    msgpack = _msgpack()
    budget = _Budget()
    try:
        value = msgpack.unpackb(
            message,
            object_hook=budget.take_map,
            list_hook=budget.take_list,
            ext_hook=_refuse_extension,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            strict_map_key=True,
        )
        _check(value)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise WireError(f"The message is not msgpack as it is spoken here ({_first_line(error)}).") from error
    return value


class _Budget:
    """Counts the values of a message while it is read, and turns the maps of arrays and scalars into those."""

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def take_list(self, values: list[Any]) -> list[Any]:
        self._spend(len(values))
        return values

    def take_map(self, values: dict[Any, Any]) -> Any:
        if ARRAY in values or SCALAR in values:
            self._spend(0)
            return _as_array(values) if ARRAY in values else _as_scalar(values)
        self._spend(len(values))
        return values

    def _spend(self, count: int) -> None:
        self.left -= 1 + count
        if self.left < 0:
            raise WireError(TOO_MANY)


def _as_map(value: Any) -> dict[bytes, Any]:
    """An array or scalar as msgpack writes it."""
    if isinstance(value, np.ndarray):
        return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}
    return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}


def _as_array(values: Mapping[Any, Any]) -> np.ndarray:
    """The array that a map describes, a read-only view of its bytes."""
    data, shape, dtype = values.get(DATA), values.get(SHAPE), _as_dtype(values.get(DTYPE))
    if values[ARRAY] is not True or not isinstance(data, bytes) or not isinstance(shape, list):
        raise WireError("An array must be a map of __ndarray__: true, data: bytes, dtype: text and shape: a list.")
    if len(shape) > MAX_AXES or not all(type(size) is int and size >= 0 for size in shape):
        raise WireError(f"The shape of an array must be at most {MAX_AXES} whole numbers from 0 on.")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"An array of shape {tuple(shape)} and dtype {dtype.str} does not have {len(data)} bytes.")
    try:
        array: np.ndarray = np.ndarray(shape, dtype, buffer=data)
    except (ValueError, OverflowError) as error:  # an empty array whose other sizes are beyond any machine
        raise WireError(f"No array has the shape {tuple(shape)}.") from error
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise WireError("An array of booleans must hold zeros and ones.")
    return array


def _as_scalar(values: Mapping[Any, Any]) -> Any:
    """The NumPy scalar that a map describes."""
    data, dtype = values.get(DATA), _as_dtype(values.get(DTYPE))
    number = isinstance(data, float) if dtype.kind == "f" else type(data) is (bool if dtype.kind == "b" else int)
    if values[SCALAR] is not True or dtype.kind not in SCALARS or dtype.itemsize > 8 or not number:
        raise WireError("A scalar must be a map of __npgeneric__: true, data: its number and dtype: text.")
    if isinstance(data, int) and dtype.kind in "iu" and not np.iinfo(dtype).min <= data <= np.iinfo(dtype).max:
        raise WireError(f"A scalar of dtype {dtype.str} cannot be {data}.")
    with np.errstate(over="ignore"):
        return np.array(data, dtype)[()]


def _as_dtype(text: Any) -> np.dtype:
    """The dtype of that name, if it may travel."""
    if not isinstance(text, str) or not ALLOWED.fullmatch(text):
        raise WireError(f"Arrays of dtype {str(text)[:40]!r} are not accepted; send numbers, booleans, text or times.")
    try:
        return np.dtype(text)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"This machine has no dtype {text!r}.") from error


def _check(value: Any) -> None:
    """Refuses what may not travel, in both directions."""
    spent, layer = 0, [value]
    for _ in range(MAX_DEPTH + 1):
        spent += sum(_cost(whole) for whole in layer)
        if spent > MAX_VALUES:
            raise WireError(TOO_MANY)
        layer = [part for whole in layer for part in _inside(whole)]
    if layer:
        raise WireError(f"The message is nested more than {MAX_DEPTH} levels deep.")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _cost(value: Any) -> int:
    """What `value` takes of the values that a message may hold, its entries included; refuses what may not travel."""
    if isinstance(value, dict | list | tuple):
        if len(value) > MAX_LENGTH:
            raise WireError(f"A list or map has more than {MAX_LENGTH} entries; send numbers as an array.")
        if isinstance(value, dict):
            _check_keys(value)
        return 1 + len(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise WireError(f"A whole number must fit into 64 bits; got {value}.")
    if value is None or isinstance(value, bool | int | float | str | bytes):  # NumPy's float64, str_ and bytes_ among them
        return 0
    if isinstance(value, np.ndarray):
        if not ALLOWED.fullmatch(value.dtype.str):
            raise WireError(f"Arrays of dtype {value.dtype} cannot be sent; send numbers, booleans, text or times.")
        return 2 + value.ndim  # its map and its shape
    if isinstance(value, np.generic) and value.dtype.kind in SCALARS and value.dtype.itemsize <= 8:
        return 1
    raise WireError(f"A {type(value).__name__} cannot be sent; send arrays, numbers and text.")


def _check_keys(values: Mapping[Any, Any]) -> None:
    for key in values:
        if not isinstance(key, str | bytes):
            raise WireError(f"The keys of a map must be text or bytes; got {key!r}.")
    if ARRAY in values or SCALAR in values:
        raise WireError("A map with the key __ndarray__ or __npgeneric__ in bytes stands for an array; use another key.")


def _refuse_extension(code: int, data: bytes) -> None:
    raise WireError(f"Extension types of msgpack are not accepted; got type {code} of {len(data)} bytes.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def _msgpack() -> Any:
    """The package, loaded where it is used."""
    try:
        import msgpack
    except ImportError as error:
        raise MissingPackage("Policies over the network need msgpack; pip install 'drifting-policy[server]'.") from error
    return msgpack
