"""Sampler: how noise becomes a chunk, by one or several evaluations of the action head."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from drifting_policy.models import Generator


class Sampler(ABC):
    """A pure function of head, condition and noise; it remembers nothing and owns no randomness.

    `evaluations` says how often the head is evaluated for one chunk, `timed` whether it is told a time.
    """

    evaluations: int
    timed: bool

    @abstractmethod
    def __call__(
        self, head: Generator, cond: Float[Tensor, "b s e"], noise: Float[Tensor, "b g t d"]
    ) -> Float[Tensor, "b g t d"]:
        """Action chunks in network units; each depends on its own row of `cond` and `noise` alone."""


class OneStep(Sampler):
    """The head itself: what drifting and regression train."""

    evaluations, timed = 1, False

    def __call__(
        self, head: Generator, cond: Float[Tensor, "b s e"], noise: Float[Tensor, "b g t d"]
    ) -> Float[Tensor, "b g t d"]:
        """The head's own answer."""
        chunk: Tensor = head(noise, cond)
        return chunk
