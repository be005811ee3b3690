"""A policy over the network is the policy itself, and whatever one client does, the next one is served."""

import contextlib
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from drifting_policy.control.client import RemoteError, RemotePolicy
from drifting_policy.control.server import Limits, PolicyServer
from drifting_policy.control.wire import decode, encode
from drifting_policy.types import ArraySpec, ConfigError, ObservationError, PolicySpec

SPEC = PolicySpec({"pose": ArraySpec((2,)), "grip": ArraySpec(())}, ArraySpec((2,)), 2, 8, 4, 10.0)
STEP = {"pose": np.float32([1, 2]), "grip": 0.5}
LONG = 60.0  # seconds that nothing is expected to take


class Line:
    """A policy whose commands count on from the observation; `hook` runs before each but the warm-up."""

    spec, max_prefix = SPEC, 3

    def __init__(self, hook: Callable[[Mapping[str, np.ndarray]], None] = lambda obs: None) -> None:
        self.hook, self.asked = hook, 0

    def act(self, obs: Mapping[str, np.ndarray], *, noise: Any = None, prefix: Any = None) -> np.ndarray:
        self.asked += 1
        if self.asked > 1:
            self.hook(obs)
        steps = np.arange(8, dtype=np.float32)[:, None]
        chunk = obs["pose"].sum(1)[:, None] + 100 * obs["grip"][:, -1, None, None] + steps
        chunk = chunk + (0 if noise is None else np.asarray(noise, np.float32))
        if prefix is not None:
            chunk[:, 1 : 1 + prefix.shape[1]] = prefix
        return chunk.astype(np.float32)


@contextlib.contextmanager
def client(server: PolicyServer, **options: Any) -> Iterator[ClientConnection]:
    """A plain websocket that has heard the greeting."""
    with connect(f"ws://{server.host}:{server.port}", compression=None, proxy=None, **options) as connection:
        decode(connection.recv(LONG))
        yield connection


def ask(connection: ClientConnection, message: Any) -> Any:
    """The answer to one request: a map, or a sentence."""
    connection.send(message if isinstance(message, bytes | str) else encode(message))
    told = connection.recv(LONG)
    return told if isinstance(told, str) else decode(told)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_server_speaks_first_and_answers_in_order() -> None:
    with PolicyServer(Line(), port=0, about={"name": "line"}) as server, connect(f"ws://127.0.0.1:{server.port}") as connection:
        told = decode(connection.recv(LONG))
        assert PolicySpec.from_dict(told["spec"]) == SPEC
        assert (told["name"], told["contract_hash"], told["max_prefix"]) == ("line", SPEC.contract_hash, 3)
        assert (told["action_horizon"], told["exec_horizon"], told["control_hz"]) == (7, 4, 10.0)
        for number in range(3):
            answer = ask(connection, STEP | {"sequence": number})
            np.testing.assert_array_equal(answer["actions"], Line().act(window(2))[0, 1:], strict=True)
            assert answer["sequence"] == number
            assert {"infer_ms", "wait_ms"} <= answer["server_timing"].keys()
            assert ("prev_total_ms" in answer["server_timing"]) == (number > 0)


def window(number: int) -> dict[str, np.ndarray]:
    """`number` times STEP, as a batch of one."""
    return {key: np.repeat(np.float32(value)[None, None], number, axis=1) for key, value in STEP.items()}


def test_a_remote_policy_is_the_policy() -> None:
    rng, local = np.random.default_rng(0), Line()
    with PolicyServer(Line(), port=0) as server, RemotePolicy(server.host, server.port, timeout=LONG) as remote:
        assert (remote.spec, remote.max_prefix) == (SPEC, 3)
        for batch in (1, 5):
            obs = {"pose": rng.normal(size=(batch, 2, 2)).astype("f4"), "grip": rng.normal(size=(batch, 2)).astype("f4")}
            noise, prefix = rng.normal(size=(batch, 8, 2)).astype("f4"), rng.normal(size=(batch, 2, 2)).astype("f4")
            for options in ({}, {"noise": noise}, {"noise": noise, "prefix": prefix}, {"prefix": prefix[:, :0]}):
                chunk = remote.act(obs, **options)
                np.testing.assert_array_equal(chunk, local.act(obs, **options), strict=True)
                assert chunk.flags.writeable


def test_a_remote_policy_infers_like_openpi_and_keeps_its_own_history() -> None:
    with PolicyServer(Line(), port=0) as server, RemotePolicy(server.host, server.port, timeout=LONG) as remote:
        first = remote.infer(STEP)["actions"][0, 0]
        second = remote.infer(STEP | {"pose": np.float32([2, 2])})["actions"][0, 0]
        assert (first, second) == (2 * 1 + 50 + 1, 1 + 2 + 50 + 1)
        remote.reset()
        assert remote.infer(STEP)["actions"][0, 0] == first
        assert remote.infer({key: value[0] for key, value in window(2).items()})["actions"][0, 0] == first


@pytest.mark.parametrize(
    "mistake",
    [
        {"obs": {"pose": np.zeros((1, 2, 2))}},
        {"noise": np.zeros((1, 7, 2))},
        {"prefix": np.zeros((1, 4, 2))},
        {"prefix": np.zeros((2, 1, 2))},
    ],
    ids=str,
)
def test_a_remote_policy_refuses_before_it_sends(mistake: dict[str, Any]) -> None:
    policy = Line()
    with PolicyServer(policy, port=0) as server, RemotePolicy(server.host, server.port) as remote:
        with pytest.raises(ObservationError):
            remote.act(**({"obs": window(2)} | mistake))
        assert policy.asked == 1  # to warm up


@pytest.mark.parametrize("junk", [b"", b"\xc1junk", bytes(1000), "text", encode([1]), encode({"pose": 1}), encode({b"x": 1})])
def test_a_bad_request_is_one_sentence_and_the_client_stays(junk: bytes | str) -> None:
    with PolicyServer(Line(), port=0) as server, client(server) as connection:
        sentence = ask(connection, junk)
        assert isinstance(sentence, str)
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "actions" in ask(connection, STEP)


def test_random_bytes_on_the_port_harm_nobody() -> None:
    rng = np.random.default_rng(0)
    with PolicyServer(Line(), port=0) as server:
        for size in (1, 100, 20_000):
            with socket.create_connection((server.host, server.port), timeout=LONG) as stranger, contextlib.suppress(OSError):
                stranger.sendall(rng.bytes(size))
        with client(server) as connection:
            for size in (1, 10, 100, 1000):
                assert isinstance(ask(connection, rng.bytes(size)), str)
            assert "actions" in ask(connection, STEP)


def test_a_giant_message_ends_its_connection_with_1009() -> None:
    with PolicyServer(Line(), port=0, limits=Limits(max_message=10_000)) as server:
        with client(server) as connection, pytest.raises(ConnectionClosed) as closed:
            ask(connection, bytes(10_001))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        with client(server) as connection:
            assert "actions" in ask(connection, STEP)


@pytest.mark.parametrize("given", [None, "Api-Key wrong", "Bearer secret", "ü"])
def test_a_wrong_token_is_401(given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    with PolicyServer(Line(), port=0, token="secret") as server:
        with pytest.raises(InvalidStatus) as refused, client(server, additional_headers=headers):
            pass
        assert refused.value.response.status_code == 401
        with pytest.raises(RemoteError, match="refuses the token"):
            RemotePolicy(server.host, server.port, token="guess", timeout=LONG)
        with RemotePolicy(server.host, server.port, token="secret", timeout=LONG) as remote:
            assert remote.spec == SPEC


def test_two_tokens_are_none() -> None:
    headers = [("Authorization", "Api-Key secret"), ("Authorization", "Api-Key secret")]
    with (
        PolicyServer(Line(), port=0, token="secret") as server,
        pytest.raises(InvalidStatus),
        client(server, additional_headers=headers),
    ):
        pass


def test_a_web_page_is_not_let_in() -> None:
    with PolicyServer(Line(), port=0) as server:
        with pytest.raises(InvalidStatus) as refused, client(server, origin="http://evil.example"):
            pass
        assert refused.value.response.status_code == 403


def health(server: PolicyServer) -> tuple[int, str]:
    """Status and text of /healthz."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=LONG) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_needs_no_token_and_tells_when_the_policy_hangs() -> None:
    go = threading.Event()
    with PolicyServer(Line(lambda obs: go.wait() and None), port=0, token="t", limits=Limits(deadline=0.05)) as server:
        assert health(server) == (200, "OK\n")
        with client(server, additional_headers={"Authorization": "Api-Key t"}) as connection:
            assert "deadline of 0.05 s" in ask(connection, STEP)
            until(lambda: health(server)[0] == 503)
            go.set()
            until(lambda: health(server)[0] == 200)


def test_a_missed_deadline_is_a_sentence_and_its_late_answer_is_nobodys() -> None:
    go = threading.Event()
    policy = Line(lambda obs: go.wait(LONG) and None)
    with PolicyServer(policy, port=0, limits=Limits(deadline=0.2)) as server, client(server) as connection:
        assert ask(connection, STEP | {"sequence": 1}) == "The policy did not answer within the deadline of 0.2 s."
        assert "deadline" in ask(connection, STEP | {"sequence": 2})  # waits behind the first, and is never evaluated
        go.set()
        answer = ask(connection, STEP | {"sequence": 3})
        while isinstance(answer, str):  # a busy machine may miss 0.2 s without any help
            answer = ask(connection, STEP | {"sequence": 3})
        assert answer["sequence"] == 3
        asked = policy.asked
        assert asked >= 3


def test_a_policy_that_fails_is_a_sentence_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def fail(obs: Mapping[str, np.ndarray]) -> None:
        if obs["grip"].max() > 1:
            raise RuntimeError("secret path /home/me")

    with PolicyServer(Line(fail), port=0) as server, client(server) as connection, caplog.at_level(logging.ERROR):
        sentence = ask(connection, STEP | {"grip": 2.0})
        assert sentence == "The policy failed on this observation (RuntimeError); the log of the server says more."
        assert "actions" in ask(connection, STEP | {"reset": True})
        with RemotePolicy(server.host, server.port, timeout=LONG) as remote:
            bad = window(2) | {"grip": np.full((1, 2), 2, np.float32)}
            with pytest.raises(RemoteError, match=r"says: The policy failed"):
                remote.act(bad)
            assert remote.act(window(2)).shape == (1, 8, 2)
    assert "secret path" in caplog.text


def test_a_policy_that_fails_to_warm_up_is_not_served() -> None:
    def fail(obs: Mapping[str, np.ndarray]) -> None:
        raise RuntimeError("broken")

    policy = Line(fail)
    policy.asked = 1
    with pytest.raises(RuntimeError, match="broken"), PolicyServer(policy, port=0):
        pass


def test_a_client_killed_in_its_request_frees_its_place() -> None:
    asked, go = threading.Event(), threading.Event()

    def wait(obs: Mapping[str, np.ndarray]) -> None:
        asked.set()
        go.wait(LONG)

    policy = Line(wait)
    with PolicyServer(policy, port=0, limits=Limits(connections=2, deadline=LONG)) as server:
        with contextlib.ExitStack() as stack:
            killed = [stack.enter_context(client(server)) for _ in range(2)]
            killed[0].send(encode(STEP))
            assert asked.wait(LONG)
            killed[1].send(encode(STEP))  # queued behind
            until(lambda: server._inference._calls.qsize() == 1)
            with pytest.raises(ConnectionClosed) as turned, client(server):
                pass
            assert turned.value.rcvd is not None
            assert turned.value.rcvd.code == 1013
            for connection in killed:
                connection.socket.shutdown(socket.SHUT_RDWR)
            until(lambda: server._connections == 0)  # while the policy still works for nobody
        go.set()
        with client(server) as connection:
            assert "actions" in ask(connection, STEP)
        assert policy.asked == 3  # the warm-up, the killed request in work and the last; never the queued one


def test_who_opens_and_never_speaks_is_dropped() -> None:
    with PolicyServer(Line(), port=0, limits=Limits(handshake=0.2, connections=1)) as server:
        silent = [socket.create_connection((server.host, server.port), timeout=LONG) for _ in range(5)]
        with client(server) as connection:
            assert "actions" in ask(connection, STEP)
            for stranger in silent:
                with stranger:
                    assert stranger.recv(1) == b""  # closed by the server


def test_who_speaks_once_and_never_again_is_dropped() -> None:
    """A client whose machine is gone: it answers no ping."""
    with PolicyServer(Line(), port=0, limits=Limits(keepalive=0.2, connections=1)) as server:
        gone = socket.create_connection((server.host, server.port), timeout=LONG)
        with gone:
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
            gone.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n".encode())
            until(lambda: server._connections == 1)
            until(lambda: server._connections == 0)


def waits(server: PolicyServer, count: int) -> None:
    """Until one request is in work and `count` others wait."""
    until(lambda: server._began is not None and server._inference._calls.qsize() >= count)


def test_clients_take_turns() -> None:
    """Each of three clients asks three times; nobody is served twice before another who waits."""
    order: list[float] = []
    ready = threading.Barrier(4)
    gate = threading.Semaphore(0)

    def note(obs: Mapping[str, np.ndarray]) -> None:
        gate.acquire(timeout=LONG)
        order.append(float(obs["grip"][0, -1]))

    def drive(server: PolicyServer, name: float) -> None:
        with client(server) as connection:
            ready.wait(LONG)
            for _ in range(3):
                assert "actions" in ask(connection, STEP | {"grip": name})

    with PolicyServer(Line(note), port=0, limits=Limits(deadline=LONG)) as server:
        drivers = [threading.Thread(target=drive, args=(server, float(name))) for name in range(3)]
        for driver in drivers:
            driver.start()
        ready.wait(LONG)
        for served in range(9):
            waits(server, min(3, 9 - served) - 1)  # beside the one in work; clients leave one by one at the end
            gate.release()
            until(lambda count=served: len(order) > count)
        for driver in drivers:
            driver.join(LONG)
    assert all(len(set(order[start : start + 3])) == 3 for start in (0, 3, 6))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.3", "robot.example"])
def test_strangers_need_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="clients must know a token"):
        PolicyServer(Line(), host=host)
    PolicyServer(Line(), host=host, token="t")
    PolicyServer(Line(), host=host, insecure=True)


@pytest.mark.parametrize("token", ["", " ", "a\n", "ü", "a "])
def test_a_token_fits_into_a_header(token: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        PolicyServer(Line(), token=token)


def test_a_taken_port_is_one_sentence() -> None:
    with PolicyServer(Line(), port=0) as server:
        second = PolicyServer(Line(), port=server.port)
        with pytest.raises(ConfigError, match="cannot be opened"), second:
            pass


@pytest.mark.parametrize("name", ["deadline", "keepalive", "handshake"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: 0.0})


def test_the_bytes_are_those_that_openpi_sends() -> None:
    """A request packed by hand as the protocol says, in a map of bytes keys for each array."""
    array = {b"__ndarray__": True, b"data": np.float64([1, 2]).tobytes(), b"dtype": "<f8", b"shape": [2]}
    scalar = {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}
    with PolicyServer(Line(), port=0) as server, client(server) as connection:
        connection.send(msgpack.packb({"pose": array, "grip": scalar}))
        told = msgpack.unpackb(connection.recv(LONG))
        assert told["actions"][b"__ndarray__"] is True
        assert (told["actions"][b"dtype"], told["actions"][b"shape"]) == ("<f4", [7, 2])
