"""Averages: the weights of a network, averaged with several memories at once."""

import copy
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from drifting_policy.types import CheckpointError, ConfigError


@final
class Averages:
    """Exponential moving averages of a network's weights, one for each decay.

    After every update an average keeps the share `decay` of itself and takes the rest from the network; it begins as a copy,
    without warm-up and without bias correction. The paper chooses the best of four decays afterwards (arXiv 2602.04770,
    Table 8); the release has a single one.

    Attributes:
        networks: The averaged networks by decay, in the order given; ready to use, without gradients.
    """

    def __init__(self, network: nn.Module, decays: Sequence[float]) -> None:
        """Averages that begin at the present weights of `network`.

        Raises:
            ConfigError: no decay, one twice, or one outside [0, 1).
        """
        if not decays or len(set(decays)) != len(decays) or not all(0 <= decay < 1 for decay in decays):
            raise ConfigError(f"Averages need one or more different decays in [0, 1); got {list(decays)}.")
        self.networks = {decay: copy.deepcopy(network).requires_grad_(False).eval() for decay in decays}

    @property
    def main(self) -> nn.Module:
        """The average with the first decay."""
        return next(iter(self.networks.values()))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move every average towards the weights of `network`."""
        weights: list[Tensor] = list(network.parameters())
        for decay, average in self.networks.items():
            torch._foreach_lerp_(list(average.parameters()), weights, 1 - decay)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The weights of every average by the text of its decay; the tensors are the averages' own."""
        return {str(decay): average.state_dict() for decay, average in self.networks.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            CheckpointError: averages of other decays.
        """
        if list(state) != [str(decay) for decay in self.networks]:
            raise CheckpointError(f"The averages have the decays {list(self.networks)}; the state holds {list(state)}.")
        for decay, average in self.networks.items():
            average.load_state_dict(state[str(decay)])
