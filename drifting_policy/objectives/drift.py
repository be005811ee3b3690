"""DriftObjective: every sample regresses onto itself, drifted towards the demonstration and away from its siblings."""

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from drifting_policy.drift import drift, drift_loss
from drifting_policy.drift.field import Coupling, Grouping, Kernel
from drifting_policy.drift.loss import DriftOptions
from drifting_policy.models import Generator
from drifting_policy.objectives.objective import Loss, Objective
from drifting_policy.types import ConfigError

# What one point of the field is: the whole chunk, one step of it, or the course of one action dimension.
GROUPINGS = {"chunk": "b g t d -> b g (t d)", "step": "b g t d -> (b t) g d", "dim": "b g t d -> (b d) g t"}


class DriftObjective(Objective):
    """The drifting loss on raw action chunks (arXiv 2602.04770, equation 6 and section 5.3).

    Each observation is one condition: `samples` chunks are generated for it, the demonstrated chunk is the only positive,
    and the siblings are the negatives.
    """

    def __init__(
        self,
        *,
        samples: int,
        grouping: str,
        temperatures: Sequence[float],
        kernel: str,
        coupling: str,
        scale: str,
        force: str,
        affinity_floor: float,
        noise_scale: float,
    ) -> None:
        """See `drifting_policy.drift.drift` for the options of the field.

        `noise_scale` is the deviation of the noise in use; training always draws unit noise. Below 1 the policy keeps to
        the middle of what it learned.

        Raises:
            ConfigError: on an unknown or impossible option.
        """
        if grouping not in GROUPINGS:
            raise ConfigError(f"Unknown grouping '{grouping}'; choose one of {sorted(GROUPINGS)}.")
        if samples < 1:
            raise ConfigError(f"The drift objective needs at least 1 sample per observation; got {samples}.")
        self.samples, self.grouping, self.noise_scale = samples, grouping, noise_scale
        self.options = DriftOptions(
            temperatures=tuple(temperatures),
            kernel=cast("Kernel", kernel),
            coupling=cast("Coupling", coupling),
            scale=cast("Grouping", scale),
            force=cast("Grouping", force),
            affinity_floor=affinity_floor,
        )
        try:  # the field knows its options best: let it refuse them now rather than in the first step
            drift(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), **self.options)
        except ValueError as error:
            raise ConfigError(f"The drift objective cannot be built: {error}") from error

    def loss(
        self,
        head: Generator,
        cond: Float[Tensor, "b s e"],
        action: Float[Tensor, "b t d"],
        generator: torch.Generator,
    ) -> Loss:
        """The drifting loss; its value says nothing about the fit, so the metrics carry what does.

        `drift_rms_<temperature>` is the length of the field before it was normalised, `sibling_spread` the deviation of the
        samples of one observation around their mean, `sample_error` their RMS distance from the demonstration (network units).
        """
        noise = torch.randn((len(action), self.samples, *action.shape[1:]), generator=generator).to(action)
        x = head(noise, cond).float()
        pattern = GROUPINGS[self.grouping]
        losses, field = drift_loss(rearrange(x, pattern), rearrange(action[:, None], pattern), **self.options)
        samples = x.detach()
        metrics = {
            "sibling_spread": samples.var(dim=1, correction=0).mean().sqrt(),
            "sample_error": (samples - action[:, None]).square().mean().sqrt(),
        }
        for temperature, rms in zip(self.options["temperatures"], field.rms, strict=True):
            metrics[f"drift_rms_{temperature:g}"] = rms
        return Loss(losses.mean(), metrics)
