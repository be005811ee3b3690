"""Whatever becomes of the server, a request ends in its own answer or in one sentence."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection
from websockets.sync.server import serve as listen

from drifting_policy.control.client import RemoteError, RemotePolicy
from drifting_policy.control.server import PolicyServer, greeting
from drifting_policy.control.wire import decode, encode
from drifting_policy.types import ArraySpec, PolicySpec

SPEC = PolicySpec({"pose": ArraySpec((2,))}, ArraySpec((2,)), 2, 8, 4, 10.0)
OBS = {"pose": np.zeros((1, 2, 2), np.float32)}
LONG = 60.0


class Constant:
    """A policy whose every command is `value`."""

    max_prefix = 0

    def __init__(self, value: float, spec: PolicySpec = SPEC) -> None:
        self.value, self.spec = value, spec

    def act(self, obs: Mapping[str, np.ndarray], *, noise: Any = None) -> np.ndarray:
        return np.full((1, *self.spec.sample_shape), self.value, np.float32)


def reply(message: bytes, value: float) -> bytes:
    """What a good server answers."""
    chunk = np.full((1, 8, 2), value, np.float32)
    return encode({"chunk": chunk, "sequence": decode(message)["sequence"]})


@contextlib.contextmanager
def scripted(talk: Callable[[ServerConnection], object], *, port: int = 0) -> Iterator[Server]:
    """A server that does what `talk` says with each connection, after the greeting."""

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send(encode(greeting(Constant(0))))
            talk(connection)

    with listen(handle, "127.0.0.1", port, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(LONG)


def port_of(server: Server) -> int:
    return int(server.socket.getsockname()[1])


class Clock:
    """A clock that goes on only while somebody sleeps by it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_nobody_there_is_a_sentence_after_growing_pauses() -> None:
    clock, port = Clock(), free_port()
    with pytest.raises(RemoteError, match=f"No policy server answers at ws://127.0.0.1:{port}"):
        RemotePolicy("127.0.0.1", port, reconnect=3.0, clock=clock, sleep=clock.sleep)
    assert sum(clock.slept) == pytest.approx(3.0)
    assert clock.slept[:5] == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert max(clock.slept) <= 1.0


@pytest.mark.parametrize("host", ["a b", "http://x", "ws://[", "x" * 300])
def test_an_impossible_address_is_a_sentence(host: str) -> None:
    with pytest.raises(RemoteError, match=r"^[^\n]*\.$"):
        RemotePolicy(host, 1, reconnect=0.0, timeout=5.0)


def test_a_server_that_dies_in_a_request_is_found_again() -> None:
    """The connection breaks while the client waits; the next server, on the same port, gets the request again."""
    died = threading.Event()
    with scripted(lambda connection: (connection.recv(), connection.socket.shutdown(socket.SHUT_RDWR), died.set())) as first:
        port = port_of(first)
        remote = RemotePolicy("127.0.0.1", port, timeout=LONG, reconnect=LONG)
        answers: list[np.ndarray] = []
        asking = threading.Thread(target=lambda: answers.append(remote.act(OBS)))
        asking.start()
        assert died.wait(LONG)
        first.socket.close()
    with PolicyServer(Constant(7.0), port=port):
        asking.join(LONG)
        assert answers[0].max() == 7.0
        remote.close()


def test_a_late_answer_is_never_taken_for_the_next_one() -> None:
    """The first answer comes after the client gave up; the next request gets its own answer, over a new connection."""
    given_up, connections = threading.Event(), []

    def talk(connection: ServerConnection) -> None:
        connections.append(connection)
        number = len(connections)
        message = connection.recv()
        if number == 1:
            given_up.wait(LONG)
        connection.send(reply(message, float(number)))

    with scripted(talk) as server, RemotePolicy("127.0.0.1", port_of(server), timeout=0.3) as remote:
        with pytest.raises(RemoteError, match=r"did not answer within 0\.3 s"):
            remote.act(OBS)
        given_up.set()
        for _ in range(20):  # a busy machine may need more than 0.3 s for the second as well
            with contextlib.suppress(RemoteError):
                assert remote.act(OBS).max() == len(connections)
                break
        assert len(connections) >= 2


@pytest.mark.parametrize("sequence", [0, 2, None])
def test_an_answer_to_another_request_is_refused(sequence: int | None) -> None:
    def talk(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(encode({"chunk": np.zeros((1, 8, 2), np.float32), "sequence": sequence}))

    with scripted(talk) as server:
        remote = RemotePolicy("127.0.0.1", port_of(server), timeout=LONG)
        with remote, pytest.raises(RemoteError, match="answered another request"):
            remote.act(OBS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\xc1", "does not speak this protocol"),
        (encode([1]), "does not speak this protocol"),
        (encode({"sequence": 1}), "did not answer with a chunk"),
        (encode({"sequence": 1, "chunk": np.zeros((1, 7, 2), np.float32)}), "did not answer with a chunk"),
        (encode({"sequence": 1, "chunk": np.zeros((1, 8, 2))}), "did not answer with a chunk"),
        ("Something is wrong.", r"says: Something is wrong\."),
    ],
)
def test_an_answer_that_is_none_is_a_sentence(answer: bytes | str, words: str) -> None:
    def talk(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(answer)
        connection.recv()

    with scripted(talk) as server:
        remote = RemotePolicy("127.0.0.1", port_of(server), timeout=LONG)
        with remote, pytest.raises(RemoteError, match=words):
            remote.act(OBS)


def test_an_interrupt_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with PolicyServer(Constant(1.0), port=0) as server, RemotePolicy(server.host, server.port, timeout=LONG) as remote:
        monkeypatch.setattr(remote._connection, "recv", interrupt)
        with pytest.raises(KeyboardInterrupt):
            remote.act(OBS)
        assert remote.act(OBS).max() == 1.0


@pytest.mark.parametrize("change", ["spec", "max_prefix"])
def test_another_contract_after_a_reconnection_is_refused(change: str) -> None:
    other = Constant(1.0, PolicySpec(SPEC.observations, SPEC.action, 2, 8, 3, 10.0) if change == "spec" else SPEC)
    if change == "max_prefix":
        other.max_prefix = 2
    with PolicyServer(Constant(1.0), port=0) as first:
        remote = RemotePolicy(first.host, first.port, timeout=LONG)
        assert remote.act(OBS).max() == 1.0
    with PolicyServer(other, port=first.port), pytest.raises(RemoteError, match="another contract than before"):
        remote.act(OBS)
    with PolicyServer(Constant(2.0), port=first.port):
        assert remote.act(OBS).max() == 2.0
        remote.close()


def test_a_stranger_that_is_no_policy_server_is_a_sentence() -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(greetings.pop())
        with contextlib.suppress(ConnectionClosed):
            connection.recv()

    good = greeting(Constant(0))
    for told in (
        b"junk",
        "text",
        encode({}),
        encode(good | {"contract_hash": "x"}),
        encode(good | {"spec": {"observations": 3}}),
    ):
        greetings = [told]
        with listen(handle, "127.0.0.1", 0, compression=None) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            with pytest.raises(RemoteError, match=r"^The server at [^\n]*[.?]$"):
                RemotePolicy("127.0.0.1", port_of(server), timeout=LONG, reconnect=0.0)
            server.shutdown()
            thread.join(LONG)


def test_a_port_that_accepts_and_never_speaks_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RemoteError, match="No policy server answers"):
        RemotePolicy("127.0.0.1", silent.getsockname()[1], timeout=0.1, reconnect=0.0)


def test_a_server_that_stops_reading_does_not_hold_the_sender() -> None:
    """A request larger than all buffers on its way; without a limit on sending, the client would wait for ever."""
    spec = PolicySpec({"image": ArraySpec((2000, 2000, 3), "uint8")}, ArraySpec((2,)), 1, 8, 4, 10.0)
    done = threading.Event()

    def handle(connection: ServerConnection) -> None:
        connection.send(encode(greeting(Constant(0, spec))))
        with contextlib.suppress(ConnectionClosed):
            done.wait(LONG)

    with listen(handle, "127.0.0.1", 0, compression=None, max_queue=1, max_size=None) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        remote = RemotePolicy("127.0.0.1", port_of(server), timeout=0.5, reconnect=0.0)
        with pytest.raises(RemoteError):
            remote.act({"image": np.zeros((4, 1, 2000, 2000, 3), np.uint8)})
        done.set()
        remote.close()
        server.shutdown()
        thread.join(LONG)
