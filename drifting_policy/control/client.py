"""A policy on another machine, used like one in this program."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np

from drifting_policy.control.history import History, as_stored
from drifting_policy.control.wire import WireError, decode, encode
from drifting_policy.types import MissingPackage, ObservationError, PolicySpec, UserError, check_obs

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between attempts to connect; each pause is twice the one before
OPTIONS = ("noise", "seed", "plan", "prefix")  # that `infer` passes on


class RemoteError(UserError):
    """A policy server that is not there, answers too late, refuses, or serves another policy than before."""


class _Lost(Exception):
    """The connection broke, or could not be made; another attempt may succeed."""


@final
class RemotePolicy:
    """The policy of a server started by `python -m drifting_policy.serve`; stateless, and the caller owns the noise.

    A lost connection is made anew, for at most `reconnect` seconds, and the request is sent again; the new server must serve
    the same contract. An answer that takes longer than `timeout` is given up together with its connection, so that it is never
    taken for that of a later request. Hence `act` returns or raises within about reconnect + 3 timeout seconds.

    For one thread. Use it as a context manager, or call `close`.

    Args:
        host: name or address of the server, or a whole `ws://` or `wss://` address without the port.
        port: its port.
        token: what the server wants to know from its clients.
        timeout: seconds to wait for a connection, and for an answer.
        reconnect: seconds to try for a connection; 0 tries once.
        max_message: bytes of the longest answer.
        clock: seconds, monotonic.
        sleep: waits so many seconds.

    Attributes:
        metadata: what the server said when it was connected to.

    Raises:
        RemoteError: the server is not there, or refuses.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        token: str | None = None,
        timeout: float = 1.0,
        reconnect: float = 5.0,
        max_message: int = 64 << 20,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._address = f"{host if host.startswith(('ws://', 'wss://')) else f'ws://{_bracketed(host)}'}:{port}"
        self._token, self._timeout, self._reconnect, self._max_message = token, timeout, reconnect, max_message
        self._clock, self._sleep = clock, sleep
        self._connection: Any = None
        self._sequence = 0
        self._spec: PolicySpec | None = None
        self._connect(until=clock() + reconnect)
        self._history = History(self.spec)

    @property
    def spec(self) -> PolicySpec:
        """What the policy sees and commands, as the server said."""
        assert self._spec is not None  # the first connection sets it
        return self._spec

    @property
    def max_prefix(self) -> int:
        """The most commands that a plan can be made to begin with."""
        return int(self.metadata["max_prefix"])

    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Action chunks "b t d" in raw units, float32, as the policy's own `act` returns them.

        Args:
            obs: exactly the keys of the specification, each "b to ..." in raw units.
            noise: standard normal "b t d", which picks the sample; None means the zero noise.
            prefix: the first k commands from now on "b k d", which are committed already.

        Raises:
            ObservationError: an observation that does not fit; nothing is sent.
            RemoteError: no answer in time, or a refusal, in the server's words.
        """
        batch = check_obs(self.spec, obs)
        request = as_stored(self.spec, obs, steps=(batch, self.spec.obs_horizon))
        expected = (batch, *self.spec.sample_shape)
        if noise is not None:
            request["noise"] = np.asarray(noise, np.float32)
            if request["noise"].shape != expected:
                raise ObservationError(f"The noise must have shape {expected}; got {request['noise'].shape}.")
        if prefix is not None:
            request["prefix"] = np.asarray(prefix, np.float32)
            self._check_prefix(request["prefix"].shape, batch=batch)
        chunk = self._ask(request).get("chunk")
        if not isinstance(chunk, np.ndarray) or chunk.dtype != np.float32 or chunk.shape != expected:
            raise RemoteError(f"The server at {self._address} did not answer with a chunk of shape {expected}.")
        return chunk.copy()

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """The answer for one control step or one window "to ...", as openpi's clients give it.

        The history of single steps is kept here, so that a new connection loses nothing; they must be consecutive. `obs` may
        hold the options `noise` "t d" or `seed` and `plan`, and `prefix` "k d".

        Returns:
            `actions` "t-first_executed d", float32 and read-only, whose row 0 is the command for the newest observation, and
            `server_timing` in milliseconds.

        Raises:
            ObservationError: an observation that does not fit; nothing is sent.
            RemoteError: no answer in time, or a refusal, in the server's words.
        """
        options = {name: value for name, value in obs.items() if name in OPTIONS}
        seen = {name: value for name, value in obs.items() if name not in OPTIONS}
        if all(np.ndim(seen[key]) == len(array.shape) for key, array in self.spec.observations.items() if key in seen):
            seen = self._history.push(seen)
        return self._ask(as_stored(self.spec, seen, steps=(self.spec.obs_horizon,)) | options)

    def reset(self) -> None:
        """Begins an episode: the next single step given to `infer` is its first."""
        self._history.reset()

    def close(self) -> None:
        """Takes leave of the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> "RemotePolicy":
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def _check_prefix(self, shape: tuple[int, ...], *, batch: int) -> None:
        action = self.spec.action.shape
        if len(shape) != 3 or (shape[0], *shape[2:]) != (batch, *action) or shape[1] > self.max_prefix:
            raise ObservationError(
                f"A prefix must have shape ({batch}, k, {action[0]}) with k at most {self.max_prefix}; got {shape}."
            )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to `request`, over a new connection where the old one is lost."""
        until = self._clock() + self._reconnect
        while True:
            if self._connection is None:
                self._connect(until=until)
            self._sequence += 1
            try:
                told = self._exchange(encode(request | {"sequence": self._sequence}))
                break
            except _Lost as error:
                self._drop()
                if self._clock() >= until:
                    raise RemoteError(f"The connection to {self._address} was lost ({error}); is the server alive?") from error
                self._sleep(FIRST_PAUSE)
            except BaseException:  # an interrupt too: the answer may still come and must not meet the next request
                self._drop()
                raise
        if isinstance(told, str):  # which is the answer to this request as well, so the connection may stay
            raise RemoteError(f"The server at {self._address} says: {told}")
        answer = _decoded(told, address=self._address)
        if answer.get("sequence") != self._sequence:
            self._drop()
            raise RemoteError(f"The server at {self._address} answered another request than the last one.")
        return answer

    def _exchange(self, message: bytes) -> bytes | str:
        """The next message of the server after `message` was sent."""
        websockets = _websockets()
        try:
            self._connection.send(message)
            told: bytes | str = self._connection.recv(timeout=self._timeout)
        except TimeoutError as error:
            raise RemoteError(f"The server at {self._address} did not answer within {self._timeout:g} s.") from error
        except (websockets.exceptions.ConnectionClosed, OSError) as error:
            raise _Lost(_first_line(error)) from error
        return told

    def _connect(self, *, until: float) -> None:
        """Connect, listen to what the server serves, and compare it with what it served before."""
        pause = FIRST_PAUSE
        while True:
            try:
                self._connection = self._open()
                self._greet(self._connection)
                return
            except _Lost as error:
                self._drop()
                left = until - self._clock()
                if left <= 0:
                    raise RemoteError(
                        f"No policy server answers at {self._address} ({error}); start one by python -m drifting_policy.serve."
                    ) from error
                self._sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
            except BaseException:
                self._drop()
                raise

    def _open(self) -> Any:
        """A connection on which the server may speak."""
        websockets = _websockets()
        headers = {} if self._token is None else {"Authorization": f"Api-Key {self._token}"}
        try:
            connection = websockets.sync.client.connect(
                self._address,
                additional_headers=headers,
                compression=None,
                proxy=None,
                open_timeout=self._timeout,
                close_timeout=self._timeout,
                max_size=self._max_message,
            ).__enter__()  # the form that all versions of the package know
            if os.name == "posix":  # a server that does not read must not hold a sender for ever
                seconds, rest = divmod(self._timeout, 1)
                wait = struct.pack("@ll", int(seconds), int(1e6 * rest))
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
            return connection
        except websockets.exceptions.InvalidStatus as error:
            if error.response.status_code == 401:
                raise RemoteError(f"The server at {self._address} refuses the token; give the one it started with.") from error
            raise _Lost(_first_line(error)) from error
        except (websockets.exceptions.InvalidURI, ValueError) as error:
            raise RemoteError(f"{self._address} is no address of a server; give a host and a port.") from error
        except (websockets.exceptions.WebSocketException, OSError) as error:  # TimeoutError is an OSError
            raise _Lost(_first_line(error)) from error

    def _greet(self, connection: Any) -> None:
        """Take over what the server says first; raises where it is another contract than before."""
        websockets = _websockets()
        try:
            told = connection.recv(timeout=self._timeout)
        except TimeoutError as error:
            raise RemoteError(f"The server at {self._address} does not say what it serves; is it a policy server?") from error
        except (websockets.exceptions.ConnectionClosed, OSError) as error:
            raise _Lost(_first_line(error)) from error
        metadata = _decoded(told, address=self._address)
        try:
            spec = PolicySpec.from_dict(metadata["spec"])
            contract = (spec.contract_hash, int(metadata["max_prefix"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RemoteError(f"The server at {self._address} does not say what its policy sees and commands.") from error
        if spec.contract_hash != metadata.get("contract_hash"):
            raise RemoteError(f"The server at {self._address} describes another policy than its contract hash stands for.")
        if self._spec is not None and contract != (self._spec.contract_hash, self.max_prefix):
            raise RemoteError(f"The server at {self._address} serves another contract than before; make a new RemotePolicy.")
        self._spec, self.metadata = spec, metadata

    def _drop(self) -> None:
        """Leave the connection at once, without the words of leave, whose answer might not come."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):  # it was down already
                connection.socket.shutdown(socket.SHUT_RDWR)
            connection.close()


def _decoded(told: bytes | str, *, address: str) -> dict[str, Any]:
    """What a message of the server says."""
    try:
        answer = decode(told) if isinstance(told, bytes) else None
    except WireError as error:
        raise RemoteError(f"The server at {address} does not speak this protocol ({error}).") from error
    if not isinstance(answer, dict):
        raise RemoteError(f"The server at {address} does not speak this protocol; is it a policy server?")
    return answer


def _bracketed(host: str) -> str:
    """An IPv6 address in the brackets that it has in front of a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _websockets() -> Any:
    """The package, loaded where it is used."""
    try:
        import websockets.exceptions
        import websockets.sync.client
    except ImportError as error:
        raise MissingPackage("A policy on another machine needs websockets; pip install 'drifting-policy[server]'.") from error
    return websockets
