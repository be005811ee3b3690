"""Objective: what is minimised, and which noise the trained policy is sampled with."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from drifting_policy.models import Generator


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and what is worth watching beside it, all still on the device."""

    value: Tensor
    metrics: Mapping[str, Tensor]


class Objective(ABC):
    """A loss on the action head, given conditioning tokens and demonstrated chunks in network units."""

    noise_scale: float

    @abstractmethod
    def loss(self, head: Generator, cond: Tensor, action: Tensor, generator: torch.Generator) -> Loss:
        """The loss for tokens `cond` "b s e" and demonstrated chunks `action` "b t d"; noise is drawn from `generator`."""
