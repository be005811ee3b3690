"""A policy behind a websocket, for openpi's clients and for our own `RemotePolicy`.

Messages are those of `wire`, requests and answers those of `session`. The server speaks first and says what it serves; then one
answer follows each request of a client, in order. An answer that is text is one sentence about what went wrong, and the client
may go on. `GET /healthz` on the same port tells whether the policy is alive.

The policy is evaluated in one thread, for all clients in the order in which they ask; a client has one request in work.
"""

import asyncio
import hmac
import ipaddress
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, final

import numpy as np

from drifting_policy.control.inference_thread import InferenceThread
from drifting_policy.control.session import Request, Session, answer, check_names
from drifting_policy.control.wire import encode
from drifting_policy.types import ConfigError, MissingPackage, Policy, UserError

LOCAL_HOST, PORT = "127.0.0.1", 8000
HEALTH = "/healthz"
PATIENCE = 2.0  # seconds that a connection or the policy may take to end
TRY_AGAIN_LATER = 1013

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        deadline: seconds from a request to its answer, the wait for other clients included.
        max_message: bytes of one message; a longer one ends the connection with code 1009.
        max_batch: windows in one request.
        connections: clients at once; one more is turned away with code 1013.
        handshake: seconds that a connection may take until it has said what it wants.
        keepalive: seconds of silence after which a client is asked whether it lives, and as many to answer.
    """

    deadline: float = 5.0
    max_message: int = 64 << 20
    max_batch: int = 64
    connections: int = 16
    handshake: float = 10.0
    keepalive: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be positive and finite; got {value}.")


NOTHING: Mapping[str, Any] = {}
LIMITS = Limits()


@final
class PolicyServer:
    """Serves `policy`; as a context manager in a thread of its own, by `serve` until a signal comes.

        with PolicyServer(policy, port=0) as server:
            remote = RemotePolicy(server.host, server.port)

    Args:
        policy: turns observations "b to ..." into chunks "b t d".
        host: the address to listen at.
        port: the port to listen at; 0 takes a free one.
        token: what clients have to know, sent as `Authorization: Api-Key TOKEN`.
        insecure: allows an address that other machines reach, without a token.
        about: plain values that the first message of the server tells beside the specification, such as a name.
        limits: what a client may ask for.
        clock: seconds, monotonic.

    Attributes:
        host: the address.
        port: the port that is listened at, once it is.

    Raises:
        ConfigError: an address that other machines reach without a token, a token that no header can carry, or a policy that
            observes a key by the name of an option.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        host: str = LOCAL_HOST,
        port: int = PORT,
        token: str | None = None,
        insecure: bool = False,
        about: Mapping[str, Any] = NOTHING,
        limits: Limits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_door(host, token=token, insecure=insecure)
        check_names(policy.spec)
        self.host, self.port = host, port
        self._policy, self._limits, self._clock = policy, limits, clock
        self._expected = None if token is None else f"Api-Key {token}".encode()
        self._connections = 0
        self._began: float | None = None  # when the evaluation in work began
        self._inference: InferenceThread
        self._greeting = encode(greeting(policy) | dict(about))
        self._thread: threading.Thread | None = None
        self._leave: Callable[[], object] = lambda: None

    async def run(self, stop: asyncio.Event, started: Callable[[], None]) -> None:
        """Evaluate the policy once to warm it up, listen, call `started`, and serve until `stop` is set.

        Raises:
            ConfigError: the address cannot be listened at.
            Exception: whatever the policy raises when it is warmed up.
        """
        websockets = _websockets()
        self._inference = InferenceThread()
        try:
            await asyncio.wrap_future(self._inference.submit(lambda: warm_up(self._policy)))
            server = websockets.asyncio.server.serve(
                self._converse,
                self.host,
                self.port,
                process_request=self._admit,
                origins=[None],  # no web page: browsers send an origin, robots do not
                compression=None,
                open_timeout=self._limits.handshake,
                ping_interval=self._limits.keepalive,
                ping_timeout=self._limits.keepalive,
                close_timeout=PATIENCE,
                max_size=self._limits.max_message,
                max_queue=1,
                logger=logging.Logger("websockets", logging.CRITICAL),  # a stranger's bytes are no event of ours
            )
            try:
                listening = await server
            except OSError as error:
                raise ConfigError(f"Port {self.port} of {self.host} cannot be opened ({error}); choose another.") from error
            async with listening:
                self.port = next(iter(listening.sockets)).getsockname()[1]
                started()
                await stop.wait()
        finally:
            self._inference.close(PATIENCE)

    def __enter__(self) -> "PolicyServer":
        """Serve from a thread until the context is left."""
        ready: Future = Future()
        self._thread = threading.Thread(target=self._background, args=(ready,), name="policy server", daemon=True)
        self._thread.start()
        ready.result()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close all connections and the port."""
        self._leave()
        if self._thread is not None:
            self._thread.join()

    def _background(self, ready: Future) -> None:
        async def main() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            self._leave = lambda: loop.call_soon_threadsafe(stop.set)
            await self.run(stop, lambda: ready.set_result(None))

        try:
            asyncio.run(main())
        except BaseException as error:  # told to who waits for the start
            if ready.done():
                raise
            ready.set_exception(error)

    def _admit(self, connection: Any, request: Any) -> Any:
        """The answer to a handshake that is none or lacks the token; None admits it."""
        if request.path == HEALTH:
            began = self._began
            if began is not None and self._clock() - began > self._limits.deadline:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "The policy has not answered within its deadline.\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._expected is not None:
            given = request.headers.get_all("Authorization")
            if len(given) != 1 or not hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), self._expected):
                return connection.respond(HTTPStatus.UNAUTHORIZED, "This server wants Authorization: Api-Key TOKEN\n")
        return None

    async def _converse(self, connection: Any) -> None:
        """Greet one client and answer its requests until it leaves."""
        if self._connections >= self._limits.connections:
            await connection.close(TRY_AGAIN_LATER, f"this server takes {self._limits.connections} clients at once")
            return
        self._connections += 1
        left = asyncio.ensure_future(connection.wait_closed())
        max_prefix = getattr(self._policy, "max_prefix", 0)
        session = Session(self._policy.spec, max_prefix=max_prefix, max_batch=self._limits.max_batch)
        timing: dict[str, float] = {}
        try:
            await connection.send(self._greeting)
            async for message in connection:
                received = self._clock()
                told = await self._answer(session, message, left, timing)
                del message
                await connection.send(told)
                timing = {"prev_total_ms": 1000 * (self._clock() - received)}
        except _websockets().exceptions.ConnectionClosed:
            pass  # clients leave without a word, also while they are answered
        finally:
            left.cancel()
            self._connections -= 1

    async def _answer(
        self, session: Session, message: bytes | str, left: asyncio.Future, timing: Mapping[str, float]
    ) -> bytes | str:
        """The message that answers `message`, or a sentence; in vain where the client `left` meanwhile."""
        try:
            request = session.read(message)
            asked = self._clock()
            call = asyncio.wrap_future(self._inference.submit(lambda: self._evaluate(request, asked, timing)))
            await asyncio.wait({call, left}, timeout=self._limits.deadline, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                call.cancel()  # before its turn it is not made at all, after that its result is dropped
                return f"The policy did not answer within the deadline of {self._limits.deadline:g} s."
            return call.result()
        except UserError as error:
            return str(error)
        except Exception as error:  # whatever goes wrong in a policy must not end the server
            log.exception("The policy failed.")
            return f"The policy failed on this observation ({type(error).__name__}); the log of the server says more."

    def _evaluate(self, request: Request, asked: float, timing: Mapping[str, float]) -> bytes:
        """The answer to `request`; runs in the inference thread."""
        self._began = began = self._clock()
        try:
            chunks = self._policy.act(request.windows, **request.arguments())
            spent = {"infer_ms": 1000 * (self._clock() - began), "wait_ms": 1000 * (began - asked)}
            return encode(answer(self._policy.spec, request, chunks, {**spent, **timing}))
        finally:
            self._began = None


def serve(server: PolicyServer, *, started: Callable[[], None]) -> None:
    """Run `server` in this thread until the program is interrupted or terminated; `started` is called when it listens.

    Raises:
        ConfigError: the address cannot be listened at.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await server.run(stop, started)

    asyncio.run(main())


def greeting(policy: Policy) -> dict[str, Any]:
    """What the server says first: the specification and its hash, and the numbers that a client needs to drive a robot."""
    spec = policy.spec
    return {
        "spec": spec.to_dict(),
        "contract_hash": spec.contract_hash,
        "max_prefix": int(getattr(policy, "max_prefix", 0)),
        "action_horizon": spec.pred_horizon - spec.first_executed,
        "exec_horizon": spec.exec_horizon,
        "control_hz": float(spec.control_hz),
    }


def warm_up(policy: Policy) -> None:
    """Evaluate the policy once on zeros, so that the first client does not wait for what happens only once."""
    spec = policy.spec
    policy.act({key: np.zeros((1, spec.obs_horizon, *array.shape), array.dtype) for key, array in spec.observations.items()})


def check_door(host: str, *, token: str | None, insecure: bool) -> None:
    """Refuse to let strangers in.

    Raises:
        ConfigError: an address that other machines reach without a token, or a token that no header can carry.
    """
    if token is not None and (not token or not token.isascii() or not token.isprintable() or token != token.strip()):
        raise ConfigError("A token must be printable ASCII characters without spaces around them, at least one.")
    if token is None and not insecure and not _is_local(host):
        raise ConfigError(
            f"Other machines can reach {host or 'all addresses'}, so clients must know a token: give token_file=FILE, "
            "listen at 127.0.0.1, or say insecure=true to let everybody in."
        )


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _websockets() -> Any:
    """The package, loaded where it is used."""
    try:
        import websockets.asyncio.server
        import websockets.exceptions
    except ImportError as error:
        raise MissingPackage("Serving a policy needs websockets; pip install 'drifting-policy[server]'.") from error
    return websockets
