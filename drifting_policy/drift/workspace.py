"""Memory that large computations use again: on a CPU fresh memory costs more than the arithmetic that fills it."""

import math
import weakref
from typing import final

import torch
from torch import Tensor


@final
class Workspace:
    """Memory for calls of the same shapes again and again. It grows with their shapes, and is given back when it is deleted."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._buffers: dict[str, Tensor] = {}
        self._returned: dict[int, list[Tensor]] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory on the device of `like`; a request ends what the last one of that name returned."""
        size, held = math.prod(shape), self._buffers.get(name)
        if held is None or held.numel() < size or held.dtype != dtype or held.device != like.device:
            held = self._buffers[name] = torch.empty(size, dtype=dtype, device=like.device)
        return held[:size].view(shape)

    def lend(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory on the device of `like` for a tensor that may be kept: it is lent again when no tensor uses it.

        Elsewhere than on a CPU it is torch's, which does so itself.
        """
        size = math.prod(shape) * dtype.itemsize
        if like.device.type != "cpu" or not size:
            return torch.empty(shape, dtype=dtype, device=like.device)
        returned = self._returned.setdefault(size, [])
        memory = returned.pop() if returned else torch.empty(size, dtype=torch.uint8)
        borrower = memory.numpy()  # torch holds it as long as a tensor uses the memory below
        weakref.finalize(borrower, returned.append, memory).atexit = False
        return torch.from_numpy(borrower).view(dtype).view(shape)
