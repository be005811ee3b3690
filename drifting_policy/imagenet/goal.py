"""Goal: a network and what its training minimises."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


class Goal(ABC):
    """A network, and a loss that is a function of the seed and the number of the step.

    Attributes:
        network: What is trained.
    """

    network: nn.Module

    @abstractmethod
    def losses(self, step: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The loss of update `step`, counted from 0, as scalars that add up to it, each with numbers worth watching.

        Nothing of a scalar is needed for the next one: take its gradient first, and its memory is free again. They must be
        asked for once for every step, in order, since the goal may remember the images of earlier steps.
        """

    @abstractmethod
    def picture(self, network: nn.Module) -> tuple[Tensor, int]:
        """What `network`, one like the goal's own, can do: images "n c h w" in [-1, 1], and how many of them stand in a row.

        The same noise at every call.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What the loss of the next step depends on besides seed, step and network."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            KeyError, ValueError: the state of another goal.
        """
