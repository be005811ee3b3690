"""The one thread that evaluates a policy for everybody who waits for it, in the order in which they asked."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, final


@final
class InferenceThread:
    """Runs calls one after the other, so that a network is never evaluated twice at once and its caller's loop stays free.

    The thread does not keep the program alive: a policy that never returns can be left behind.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], Any]) -> Future:
        """What `call()` will return or raise; a call that is cancelled before its turn is never made."""
        future: Future = Future()
        self._calls.put((call, future))
        return future

    def close(self, timeout: float) -> None:
        """Ends the thread after the calls so far, and waits `timeout` seconds for that."""
        self._calls.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 (it belongs to who waits for the result)
                    future.set_exception(error)
            del item, call, future  # an observation must not stay in memory until the next one comes
