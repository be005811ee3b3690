"""FlowSampler: follows the velocity that the head predicts, from noise at time 0 to a chunk at time 1."""

from jaxtyping import Float
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.samplers.sampler import Sampler
from drifting_policy.types import ConfigError


class FlowSampler(Sampler):
    """Euler's method with equal steps (Lipman et al. 2023, "Flow matching for generative modeling")."""

    timed = True

    def __init__(self, *, steps: int) -> None:
        """As many evaluations as `steps`.

        Raises:
            ConfigError: below 1 step.
        """
        if steps < 1:
            raise ConfigError(f"A flow needs at least 1 step from noise to chunk; got {steps}.")
        self.evaluations = steps

    def __call__(
        self, head: Generator, cond: Float[Tensor, "b s e"], noise: Float[Tensor, "b g t d"]
    ) -> Float[Tensor, "b g t d"]:
        """x + velocity / steps, from each time 0, 1/steps, 2/steps, ... to the next."""
        x = noise
        for step in range(self.evaluations):
            time = x.new_full((x.shape[0],), step / self.evaluations)
            x = x + head(x, cond, time) / self.evaluations
        return x
