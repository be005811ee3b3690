"""Exchange: the fixed memory through which one request for a plan and its answer go."""

import contextlib
from multiprocessing.shared_memory import SharedMemory
from typing import Any, final

import numpy as np

from drifting_policy.types import PolicySpec

ALIGNMENT = 64  # bytes, a cache line
TEXT = 512  # bytes of an error's sentence


@final
class Exchange:
    """Arrays of one request and one answer, in plain memory or in a block that two processes share.

    Only one side uses them at a time: a signal that is not part of this hands them over.

    Args:
        spec: shapes and dtypes of observations and commands.
        max_prefix: longest prefix that the policy takes.
        candidates: k, chunks that are drawn for one plan.
        shared: whether to make a block of shared memory.
        name: of the block to attach to, instead.

    Attributes:
        windows: the observations "k to ..." by key: k times the same.
        prefix: "n d", of which the first `prefix_steps` count.
        noise: "k t d", of the answer.
        chunk: "t d", the answer.
        numbers: int64: plan, length of the prefix, whether noise was used.
        seed: uint64, of the episode.
        times: begin and end of the inference, and the spread of its candidates.
    """

    def __init__(
        self, spec: PolicySpec, *, max_prefix: int, candidates: int, shared: bool = False, name: str | None = None
    ) -> None:
        t, d = spec.sample_shape
        layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "numbers": ((3,), np.dtype(np.int64)),
            "seed": ((1,), np.dtype(np.uint64)),
            "times": ((3,), np.dtype(np.float64)),
            "text": ((TEXT,), np.dtype(np.uint8)),
            "prefix": ((max(max_prefix, 1), d), np.dtype(np.float64)),
            "noise": ((candidates, t, d), np.dtype(np.float32)),
            "chunk": ((t, d), np.dtype(np.float64)),
        }
        for key, array in spec.observations.items():
            layout[f"window {key}"] = ((candidates, spec.obs_horizon, *array.shape), np.dtype(array.dtype))
        offsets, size = {}, 0
        for field, (shape, dtype) in layout.items():
            offsets[field] = size
            size += -(-int(np.prod(shape)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self._block = SharedMemory(name=name, create=name is None, size=size) if shared or name is not None else None
        self._owned = self._block is not None and name is None
        buffer: Any = np.zeros(size, np.uint8) if self._block is None else self._block.buf
        arrays: dict[str, np.ndarray] = {
            field: np.ndarray(shape, dtype, buffer=buffer, offset=offsets[field]) for field, (shape, dtype) in layout.items()
        }
        self.numbers, self.seed, self.times = arrays["numbers"], arrays["seed"], arrays["times"]
        self.prefix, self.noise, self.chunk = arrays["prefix"], arrays["noise"], arrays["chunk"]
        self.windows = {key: arrays[f"window {key}"] for key in spec.observations}
        self._text = arrays["text"]

    @property
    def name(self) -> str:
        """The name under which another process attaches to the block."""
        assert self._block is not None
        return self._block.name

    @property
    def error(self) -> str | None:
        """The sentence of the error that the inference ended with, or None."""
        return bytes(self._text).rstrip(b"\0").decode(errors="replace") if self._text[0] else None

    @error.setter
    def error(self, sentence: str | None) -> None:
        """Say how the inference ended."""
        self._text.fill(0)
        raw = (sentence or "").encode()[:TEXT]
        self._text[: len(raw)] = np.frombuffer(raw, np.uint8)

    def unlink(self) -> None:
        """Take the block's name away: it lives as long as a process holds it, and cannot outlive them."""
        if self._owned and self._block is not None:
            self._owned = False
            self._block.unlink()

    def close(self) -> None:
        """Let go of shared memory; the arrays must not be used any more."""
        if self._block is None:
            return
        self.unlink()
        for array in ("numbers", "seed", "times", "prefix", "noise", "chunk", "windows", "_text"):
            delattr(self, array)
        with contextlib.suppress(BufferError):  # a traceback holds an array: then the end of the process frees the block
            self._block.close()
        self._block = None
