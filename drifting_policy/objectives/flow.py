"""FlowObjective: a baseline. The head learns the velocity of straight paths from noise to demonstrations."""

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.objectives.objective import Loss, Objective
from drifting_policy.samplers.flow import FlowSampler
from drifting_policy.types import ConfigError

TIME_SAMPLINGS = ("uniform", "biased")


class FlowObjective(Objective):
    """Conditional flow matching on straight paths (Lipman et al. 2023; Liu et al. 2023, "Flow straight and fast").

    At time t the sample is (1 - t) noise + t data, and its velocity data - noise.
    """

    timed = True

    def __init__(self, *, samples: int, time_sampling: str, time_bias: float, steps: int) -> None:
        """`samples` noises and times per demonstration; the trained policy takes `steps` Euler steps.

        Times in training are uniform in [0, 1], or `biased` towards noise (as arXiv 2606.05737 proposes for one step): their
        density is that of Beta(1, `time_bias`), time_bias (1 - t)^(time_bias - 1), which is uniform at 1.

        Raises:
            ConfigError: on an unknown or impossible option.
        """
        if samples < 1:
            raise ConfigError(f"The flow objective needs at least 1 sample per observation; got {samples}.")
        if time_sampling not in TIME_SAMPLINGS:
            raise ConfigError(f"Unknown time_sampling '{time_sampling}'; choose one of {sorted(TIME_SAMPLINGS)}.")
        if not 1 <= time_bias < float("inf"):
            raise ConfigError(f"time_bias must be a number of at least 1; got {time_bias}.")
        FlowSampler(steps=steps)  # it knows its option best: refuse it now
        self.samples, self.bias = samples, time_bias if time_sampling == "biased" else 1.0
        self.sampler = {"name": "flow", "steps": steps}

    def loss(
        self,
        head: Generator,
        cond: Float[Tensor, "b s e"],
        action: Float[Tensor, "b t d"],
        generator: torch.Generator,
    ) -> Loss:
        """Mean squared error of the velocity.

        `sample_error` is the RMS distance of the chunk at the end of the predicted straight path from the demonstration.
        """
        shape = (len(action), self.samples, *action.shape[1:])
        noise = torch.randn(shape, generator=generator).to(action)
        time = self.times(shape[:2], generator).to(action)
        left = (1 - time)[..., None, None]
        x = left * noise + (1 - left) * action[:, None]
        velocity = head(x, cond, time).float()
        value = (velocity - (action[:, None] - noise)).square().mean()
        chunk = x + left * velocity.detach()
        return Loss(value, {"sample_error": (chunk - action[:, None]).square().mean().sqrt()})

    def times(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random times of this shape, by the inverse of the distribution function 1 - (1 - t)^bias."""
        return 1 - torch.rand(shape, generator=generator) ** (1 / self.bias)
