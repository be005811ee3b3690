"""The shared memory through which observations and commands go between the parent and one worker process."""

import contextlib
from multiprocessing.shared_memory import SharedMemory
from typing import Any, final

import numpy as np

from drifting_policy.types import PolicySpec

ALIGNMENT = 64  # bytes, a cache line
IDLE = -1


@final
class WorkerMemory:
    """Arrays over one block of shared memory, for `slots` environments of one worker.

    Whoever was told by a message that an array is filled may read it, until he answers. `now` and `beat` are no part of the
    exchange: they are what the parent can still read when the worker has died or hangs.

    Args:
        spec: shapes and dtypes of observations and commands.
        slots: number of environments.
        name: of the block to attach to; without one, a new block is made.

    Attributes:
        windows: the newest observations "slot to ..." by key, written by the worker.
        commands: "slot ta d", written by the parent.
    """

    def __init__(self, spec: PolicySpec, *, slots: int, name: str | None = None) -> None:
        layout: dict[tuple[str, str], tuple[tuple[int, ...], np.dtype[Any]]] = {("pulse", ""): ((2,), np.dtype(np.int64))}
        layout["commands", ""] = ((slots, spec.exec_horizon, *spec.action.shape), np.dtype(spec.action.dtype))
        for key, array in spec.observations.items():
            layout["windows", key] = ((slots, spec.obs_horizon, *array.shape), np.dtype(array.dtype))
        offsets, size = [], 0
        for shape, dtype in layout.values():
            offsets.append(size)
            size += -(-int(np.prod(shape)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self._block = SharedMemory(name=name, create=name is None, size=size)
        self._linked = name is None
        arrays: dict[tuple[str, str], np.ndarray] = {
            field: np.ndarray(shape, dtype, buffer=self._block.buf, offset=offset)
            for (field, (shape, dtype)), offset in zip(layout.items(), offsets, strict=True)
        }
        self._pulse = arrays["pulse", ""]
        self.commands = arrays["commands", ""]
        self.windows = {key: arrays["windows", key] for key in spec.observations}
        if name is None:
            self._pulse[0] = IDLE

    @property
    def name(self) -> str:
        """The name under which another process attaches to the block."""
        return self._block.name

    @property
    def now(self) -> int:
        """The slot whose environment is being stepped or reset, or IDLE."""
        return int(self._pulse[0])

    @property
    def beat(self) -> int:
        """A number that grows with every step and reset."""
        return int(self._pulse[1])

    def touch(self, slot: int) -> None:
        """The worker is about to step or reset the environment of `slot`."""
        self._pulse[0] = slot
        self._pulse[1] += 1

    def rest(self) -> None:
        """The worker is done with it."""
        self._pulse[0] = IDLE

    def unlink(self) -> None:
        """Take the name away: the memory lives as long as a process holds it, and cannot outlive them."""
        if self._linked:
            self._linked = False
            self._block.unlink()

    def close(self) -> None:
        """Let go of the memory, whose arrays must not be used any more; by who made it, take the name away too."""
        self.unlink()
        del self._pulse, self.commands, self.windows  # the block cannot be closed under its arrays
        with contextlib.suppress(BufferError):  # a traceback holds one of them: then the end of the process frees it
            self._block.close()
