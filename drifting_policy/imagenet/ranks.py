"""Ranks: the processes that torchrun started for one evaluation, and where they meet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from drifting_policy.types import ConfigError

PATIENCE = timedelta(days=7)  # that the first rank to be done waits for the last; torchrun ends them all if one fails


@dataclass(frozen=True)
class Ranks:
    """Process `index` of `count`, number `local` on its machine."""

    index: int = 0
    count: int = 1
    local: int = 0

    @staticmethod
    def here() -> "Ranks":
        """What torchrun's environment variables RANK, WORLD_SIZE and LOCAL_RANK tell; a single process without them.

        Raises:
            ConfigError: they contradict each other, or do not tell where to meet.
        """
        if "WORLD_SIZE" not in os.environ:
            return Ranks()
        try:
            ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
        except (KeyError, ValueError) as error:
            raise ConfigError(f"WORLD_SIZE is set, but RANK and LOCAL_RANK are not numbers beside it ({error}).") from error
        if not 0 <= ranks.index < ranks.count or ranks.local < 0:
            raise ConfigError(f"There is no rank {ranks.index} among {ranks.count}.")
        if ranks.count > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise ConfigError("Several ranks meet at MASTER_ADDR and MASTER_PORT, which torchrun sets; start them by torchrun.")
        return ranks

    @property
    def first(self) -> bool:
        """Whether this is the process that puts everything together."""
        return self.index == 0

    def device(self, name: str) -> str:
        """`name`, or for "auto" and "cuda" the GPU of this process where there are several."""
        if self.count > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local}"
        return name

    @contextmanager
    def together(self) -> Iterator[None]:
        """A context that no rank leaves before all of them did what is inside.

        Raises:
            ConfigError: another rank cannot be reached, or ended.
        """
        if self.count == 1:
            yield
            return
        try:
            distributed.init_process_group("gloo", rank=self.index, world_size=self.count, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"The other ranks cannot be reached ({str(error).splitlines()[0]}).") from error
        try:
            yield
            try:
                distributed.barrier()
            except RuntimeError as error:
                raise ConfigError("Another rank ended before it was done; what it says tells why. Start them again.") from error
        finally:
            distributed.destroy_process_group()
