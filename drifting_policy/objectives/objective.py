"""Objective: what is minimised, and how the trained policy is sampled."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drifting_policy.models import Generator


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and what is worth watching beside it, all still on the device."""

    value: Tensor
    metrics: Mapping[str, Tensor]


class Objective(ABC):
    """A loss on the action head, given conditioning tokens and demonstrated chunks in network units.

    `noise_scale` is what the noise is multiplied by in use and `training_noise` the same in training, `sampler` the recipe by
    which a chunk is drawn, and `timed` says whether the head must hear a time.
    """

    noise_scale: float = 1.0
    training_noise: float = 1.0
    sampler: Mapping[str, Any] = {"name": "one_step"}
    timed: bool = False

    @abstractmethod
    def loss(self, head: Generator, cond: Tensor, action: Tensor, generator: torch.Generator) -> Loss:
        """The loss for tokens `cond` "b s e" and demonstrated chunks `action` "b t d"; noise is drawn from `generator`."""
