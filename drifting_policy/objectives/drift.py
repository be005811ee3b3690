"""DriftObjective: every sample regresses onto itself, drifted towards the demonstration and away from its siblings."""

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from drifting_policy.drift import drift, drift_loss
from drifting_policy.drift.definitions import Coupling, Grouping, Kernel
from drifting_policy.drift.loss import DriftOptions
from drifting_policy.models import Generator
from drifting_policy.objectives.objective import Loss, Objective
from drifting_policy.types import ConfigError

# What one point of the field is: the whole chunk, one step of it, or the course of one action dimension.
GROUPINGS = {"chunk": "b g t d -> b g (t d)", "step": "b g t d -> (b t) g d", "dim": "b g t d -> (b d) g t"}
# Whose samples and demonstrations see each other: those of one observation, or all of the batch as those of one condition.
CONDITIONS = {"observation": "b g t d -> b g t d", "batch": "b g t d -> 1 (b g) t d"}


class DriftObjective(Objective):
    """The drifting loss on raw action chunks (arXiv 2602.04770, equation 6 and section 5.3).

    Each observation is one condition: `samples` chunks are generated for it, the demonstrated chunk is the only positive,
    and the siblings are the negatives. With `condition` "batch" all demonstrations of a batch are the positives and all its
    samples the siblings of a single condition: the unconditional setting of the paper, for tasks whose observation says
    nothing. Anywhere else it would teach the head to ignore what it observes.
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
        attraction: float,
        repulsion: float | None,
        noise_scale: float,
        condition: str,
    ) -> None:
        """See `drifting_policy.drift.drift` for the options of the field.

        `repulsion` None is 1 - 1/samples where each observation is a condition: with a single positive the mean of the *other*
        siblings repels a sample by g / (g - 1) of what it deviates from the mean of all g, more than the positive attracts it,
        and its deviation grows. The factor takes that back, as if the sample were among its siblings. In a batch that is one
        condition the positives are many, and None is 1, the paper's balance.

        `noise_scale` is the deviation of the noise in use; training always draws unit noise. Below 1 the policy keeps to
        the middle of what it learned.

        Raises:
            ConfigError: on an unknown or impossible option.
        """
        if grouping not in GROUPINGS:
            raise ConfigError(f"Unknown grouping '{grouping}'; choose one of {sorted(GROUPINGS)}.")
        if condition not in CONDITIONS:
            raise ConfigError(f"Unknown condition '{condition}'; choose one of {sorted(CONDITIONS)}.")
        if samples < 1:
            raise ConfigError(f"The drift objective needs at least 1 sample per observation; got {samples}.")
        self.samples, self.noise_scale = samples, noise_scale
        self.condition, self.grouping = condition, grouping
        self.options = DriftOptions(
            temperatures=tuple(temperatures),
            kernel=cast("Kernel", kernel),
            coupling=cast("Coupling", coupling),
            scale=cast("Grouping", scale),
            force=cast("Grouping", force),
            affinity_floor=affinity_floor,
            attraction=attraction,
            repulsion=balance(samples, condition) if repulsion is None else repulsion,
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
        samples of one condition around their mean, `sample_error` the RMS distance of the samples of one observation from its
        demonstration (network units).
        """
        noise = torch.randn((len(action), self.samples, *action.shape[1:]), generator=generator).to(action)
        x = head(noise, cond).float()
        condition, grouping = CONDITIONS[self.condition], GROUPINGS[self.grouping]
        siblings, positives = rearrange(x, condition), rearrange(action[:, None], condition)
        losses, field = drift_loss(rearrange(siblings, grouping), rearrange(positives, grouping), **self.options)
        samples = x.detach()
        metrics = {
            "sibling_spread": siblings.detach().var(dim=1, correction=0).mean().sqrt(),
            "sample_error": (samples - action[:, None]).square().mean().sqrt(),
        }
        for temperature, rms in zip(self.options["temperatures"], field.rms, strict=True):
            metrics[f"drift_rms_{temperature:g}"] = rms
        return Loss(losses.mean(), metrics)


def balance(samples: int, condition: str) -> float:
    """The factor on the repulsion under which equally far siblings of one positive neither part nor join."""
    return 1.0 if condition == "batch" else 1.0 - 1.0 / samples
