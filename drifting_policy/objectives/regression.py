"""RegressionObjective: the control. The same head without noise, fitted by mean squared error."""

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.objectives.objective import Loss, Objective


class RegressionObjective(Objective):
    """Plain behaviour cloning: the head's noise input is zero in training and in use."""

    noise_scale = training_noise = 0.0

    def loss(
        self,
        head: Generator,
        cond: Float[Tensor, "b s e"],
        action: Float[Tensor, "b t d"],
        generator: torch.Generator,
    ) -> Loss:
        """Mean squared error to the demonstrated chunk, in network units."""
        chunk = head(torch.zeros_like(action)[:, None], cond)[:, 0].float()
        value = (chunk - action).square().mean()
        return Loss(value, {"sample_error": value.detach().sqrt()})
