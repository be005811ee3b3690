"""Messages: whatever may be sent comes back, and whatever comes is a value or one sentence."""

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from drifting_policy.control.wire import MAX_DEPTH, MAX_LENGTH, MAX_VALUES, WireError, decode, encode

DTYPES = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(),
    arrays.unsigned_integer_dtypes(),
    arrays.floating_dtypes(),
    arrays.byte_string_dtypes(),
    arrays.unicode_string_dtypes(),
    arrays.datetime64_dtypes(),
    arrays.timedelta64_dtypes(),
)
ARRAYS = DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
KEYS = st.text() | st.binary().filter(lambda key: not key.startswith(b"__"))
TREES = st.recursive(PLAIN | ARRAYS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


def same(sent: Any, received: Any) -> bool:
    """Equal in type, dtype, shape and bits."""
    if isinstance(sent, np.ndarray):
        alike = (sent.dtype, sent.shape) == (received.dtype, received.shape)
        return alike and sent.tobytes() == received.tobytes() and not received.flags.writeable
    if isinstance(sent, dict):
        return sent.keys() == received.keys() and all(same(sent[key], received[key]) for key in sent)
    if isinstance(sent, list):
        return len(sent) == len(received) and all(map(same, sent, received))
    return type(sent) is type(received) and (sent == received or sent != sent)


@settings(deadline=None, max_examples=80)
@given(TREES)
def test_what_is_sent_comes_back(value: Any) -> None:
    assert same(value, decode(encode(value)))


@pytest.mark.parametrize("order", ["C", "F", "strided", "reversed"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i2", ">u8", "|b1", "<f2"])
def test_any_layout_is_sent_in_c_order(order: str, dtype: str) -> None:
    array = np.arange(24).reshape(4, 6).astype(dtype)
    given = {"C": array, "F": np.asfortranarray(array), "strided": array[::2, 1::2], "reversed": array[::-1]}[order]
    assert same(np.ascontiguousarray(given), decode(encode(given)))


@pytest.mark.parametrize("scalar", [np.float32(0.1), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.float16(np.inf)])
def test_scalars_keep_their_type(scalar: np.generic) -> None:
    received = decode(encode({"x": scalar}))["x"]
    assert type(received) is type(scalar)
    assert received == scalar


def test_what_msgpack_knows_loses_its_numpy_type() -> None:
    assert [type(value) for value in decode(encode((np.float64(1), np.str_("a"), np.bytes_(b""))))] == [float, str, bytes]


def test_the_bytes_are_those_of_the_protocol() -> None:
    message = encode({"actions": np.float32([[1, 2]])})
    array = {b"__ndarray__": True, b"data": np.float32([1, 2]).tobytes(), b"dtype": "<f4", b"shape": [1, 2]}
    assert msgpack.unpackb(message) == {"actions": array}
    assert msgpack.unpackb(encode(np.float32(1))) == {b"__npgeneric__": True, b"data": 1.0, b"dtype": "<f4"}


@pytest.mark.parametrize(
    "value",
    [
        np.array([None]),
        np.zeros(2, dtype="i4,f4"),
        np.zeros(2, dtype=complex),
        np.complex64(1),
        np.longdouble(1),
        np.datetime64("2020-01-01"),
        np.zeros(2, dtype="V3"),
        {1: 2},
        {"a": {b"__ndarray__": True}},
        {"a": object()},
        2**64,
        [0] * (MAX_LENGTH + 1),
        [[0] * 1000] * (MAX_VALUES // 1000 + 1),
    ],
    ids=lambda value: str(value)[:22],  # an address would change the name
)
def test_what_cannot_travel_is_refused_by_the_sender(value: Any) -> None:
    with pytest.raises(WireError, match=r"^[A-Z][^\n]*\.$"):
        encode(value)


def array_map(**changes: Any) -> dict[bytes, Any]:
    """A good array of three floats, with parts exchanged or, where they are None, left out."""
    good = {"__ndarray__": True, "data": bytes(12), "dtype": "<f4", "shape": [3]} | changes
    return {key.encode(): value for key, value in good.items() if value is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "|O"},
        {"dtype": "O"},
        {"dtype": "|V4"},
        {"dtype": "<c8"},
        {"dtype": "i4,f4"},
        {"dtype": "(3,)f4"},
        {"dtype": "<f4\n"},
        {"dtype": "<U0"},
        {"dtype": "<M8[7Q]"},
        {"dtype": b"<f4"},
        {"dtype": None},
        {"shape": [4]},
        {"shape": [2]},
        {"shape": [-3]},
        {"shape": [-1, -3]},
        {"shape": [True, 3]},
        {"shape": [3.0]},
        {"shape": 3},
        {"shape": None},
        {"shape": [1] * 33 + [3]},
        {"shape": [0, 2**63], "data": b""},
        {"shape": [0, 2**62, 2**62], "data": b""},
        {"shape": [2**32, 2**32, 2**32]},
        {"data": "text"},
        {"data": None},
        {"data": bytes(11)},
        {"dtype": "|b1", "data": b"\x00\x01\x02"},
        {"__ndarray__": False},
    ],
    ids=str,
)
def test_an_array_that_does_not_fit_together_is_refused(changes: dict[str, Any]) -> None:
    assert decode(msgpack.packb({"x": array_map()}))["x"].shape == (3,)
    with pytest.raises(WireError, match=r"^[A-Z][^\n]*\.$"):
        decode(msgpack.packb({"x": array_map(**changes)}))


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (300, "|i1"),
        (-1, "|u1"),
        (1.5, "<i4"),
        (True, "<i4"),
        (1, "|b1"),
        ("a", "<U1"),
        (1, "<M8[D]"),
        (1.0, "<f16"),
        (0, "<f4"),
    ],
)
def test_a_scalar_that_does_not_fit_is_refused(data: Any, dtype: str) -> None:
    with pytest.raises(WireError, match=r"\.$"):
        decode(msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": dtype}))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * (MAX_DEPTH + 1) + b"\xc0",
        b"\x91" * 100_000 + b"\xc0",
        b"\xdd\x00\x00\x04\x00" * 2000,
        b"\x81\x01\x02",
        b"\x81\x90\x02",
        b"\xc0\xc0",
        b"\xd4\x05\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xa1\xff",
        msgpack.packb([[[]] * 1000] * 200),
    ],
    ids=lambda message: str(message[:20]),
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(WireError, match=r"^[A-Z][^\n]*\.$"):
        decode(message)


def test_the_deepest_message_passes() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(WireError, match="nested"):
        encode([value])


@settings(deadline=None, max_examples=120)
@given(st.binary(max_size=300) | st.builds(lambda *given: flip(*given), TREES.map(encode), st.integers(0), st.binary()))
@example(b"\xdc\x04\x00" * 40_000)
@example(msgpack.packb([[0] * 1000] * 1000))
def test_anything_else_is_one_sentence_and_little_memory(message: bytes) -> None:
    """Lists that claim more than they hold cost msgpack at most 1024 levels of 1024 pointers."""
    tracemalloc.start()
    sentence = "."
    try:
        decode(message)
    except WireError as error:
        sentence = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert peak < 16 * len(message) + (12 << 20)


def flip(message: bytes, place: int, patch: bytes) -> bytes:
    """`message` with `patch` over the bytes at `place`."""
    start = place % (len(message) + 1)
    return message[:start] + patch + message[start + len(patch) :]
