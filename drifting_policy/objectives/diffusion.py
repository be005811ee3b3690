"""DiffusionObjective: a baseline. The head learns to remove noise of every strength, and draws a chunk in many steps."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.objectives.objective import Loss, Objective
from drifting_policy.samplers.diffusion import DiffusionSampler, noise_schedule
from drifting_policy.types import ConfigError


class DiffusionObjective(Objective):
    """The simplified loss of DDPM (Ho et al. 2020, equation 14) with the settings of Diffusion Policy (Chi et al. 2023)."""

    timed = True

    def __init__(self, *, samples: int, prediction: str, timesteps: int, clip_sample: bool, scheduler: str, steps: int) -> None:
        """`samples` noises of random strength per demonstration; see `DiffusionSampler` for the other options.

        Raises:
            ConfigError: on an unknown or impossible option, or where diffusers is not installed.
        """
        if samples < 1:
            raise ConfigError(f"The diffusion objective needs at least 1 sample per observation; got {samples}.")
        trained: dict[str, Any] = {"prediction": prediction, "timesteps": timesteps, "clip_sample": clip_sample}
        self.samples, self.prediction, self.clip_sample = samples, prediction, clip_sample
        self.sampler = {"name": "diffusion", "scheduler": scheduler, "steps": steps, **trained}
        DiffusionSampler(scheduler=scheduler, steps=steps, **trained)  # it knows its options best: refuse them now
        self.schedule = noise_schedule(**trained)

    def loss(
        self,
        head: Generator,
        cond: Float[Tensor, "b s e"],
        action: Float[Tensor, "b t d"],
        generator: torch.Generator,
    ) -> Loss:
        """Mean squared error of the predicted noise or chunk, all strengths alike.

        `sample_error` is the RMS distance of the chunk that the prediction stands for from the demonstration.
        """
        shape = (len(action), self.samples, *action.shape[1:])
        noise = torch.randn(shape, generator=generator).to(action)
        alphas = self.schedule.alphas_cumprod.to(action)
        steps = torch.randint(len(alphas), shape[:2], generator=generator).to(action.device)
        signal, spread = alphas[steps][..., None, None].sqrt(), (1 - alphas[steps])[..., None, None].sqrt()
        x = signal * action[:, None] + spread * noise
        predicted = head(x, cond, (steps / len(alphas)).to(action)).float()
        target = noise if self.prediction == "epsilon" else action[:, None]
        value = (predicted - target).square().mean()
        chunk = predicted.detach()
        if self.prediction == "epsilon":
            chunk = (x - spread * chunk) / signal
        if self.clip_sample:
            chunk = chunk.clamp(-1, 1)
        return Loss(value, {"sample_error": (chunk - action[:, None]).square().mean().sqrt()})
