"""DiffusionSampler: DDPM or DDIM through the schedulers of diffusers, with noise that follows from the given noise."""

import hashlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.samplers.sampler import Sampler
from drifting_policy.types import ConfigError, MissingPackage

PREDICTIONS = ("epsilon", "sample")
# How much noise every step adds (η of DDIM, Song et al. 2021, equation 16): all that DDPM adds (Ho et al. 2020), or none.
ETA = {"ddpm": 1.0, "ddim": 0.0}


def noise_schedule(*, prediction: str, timesteps: int, clip_sample: bool) -> Any:
    """The diffusers scheduler with the settings of Diffusion Policy (Chi et al. 2023).

    There, beta_start 1e-4 and beta_end 0.02 are set as well, but the schedule squaredcos_cap_v2 (Nichol and Dhariwal 2021)
    does not read them.

    Raises:
        ConfigError: on an impossible option, or where diffusers is not installed.
    """
    if prediction not in PREDICTIONS:
        raise ConfigError(f"Unknown prediction '{prediction}'; choose one of {sorted(PREDICTIONS)}.")
    if timesteps < 1:
        raise ConfigError(f"Diffusion needs at least 1 timestep; got {timesteps}.")
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    except ImportError as error:
        raise MissingPackage("Diffusion needs diffusers: pip install 'drifting-policy[baselines]'.") from error
    return DDIMScheduler(
        num_train_timesteps=timesteps,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=clip_sample,
        prediction_type=prediction,
        set_alpha_to_one=True,
        steps_offset=0,
        timestep_spacing="leading",
    )


class DiffusionSampler(Sampler):
    """Removes the noise step by step. DDPM is DDIM with η = 1 whose noise estimate follows from the clipped sample."""

    timed = True

    def __init__(self, *, scheduler: str, steps: int, prediction: str, timesteps: int, clip_sample: bool) -> None:
        """A sampler for a head that was trained with `prediction`, `timesteps` and `clip_sample`.

        Args:
            scheduler: "ddpm", or "ddim", which adds no noise on the way.
            steps: Evaluations of the head, at most `timesteps`, which are passed over evenly.
            prediction: What the head predicts: "epsilon", the noise, or "sample", the chunk.
            timesteps: Noise levels in training.
            clip_sample: Keep the estimate of the chunk within [-1, 1] at every step.

        Raises:
            ConfigError: on an impossible option, or where diffusers is not installed.
        """
        if scheduler not in ETA:
            raise ConfigError(f"Unknown scheduler '{scheduler}'; choose one of {sorted(ETA)}.")
        if not 1 <= steps <= timesteps:
            raise ConfigError(f"Diffusion takes between 1 and {timesteps} steps, the timesteps of its training; got {steps}.")
        self.scheduler = noise_schedule(prediction=prediction, timesteps=timesteps, clip_sample=clip_sample)
        self.scheduler.set_timesteps(steps)
        self.evaluations, self.timesteps, self.eta = steps, timesteps, ETA[scheduler]

    def __call__(
        self, head: Generator, cond: Float[Tensor, "b s e"], noise: Float[Tensor, "b g t d"]
    ) -> Float[Tensor, "b g t d"]:
        """The chunk that is left when all noise is removed; DDPM's noise on the way is `step_noise`."""
        x, options = noise, {"eta": self.eta, "use_clipped_model_output": self.eta > 0, "return_dict": False}
        added = step_noise(noise, steps=self.evaluations) if self.eta > 0 else [None] * self.evaluations
        for step, draw in zip(self.scheduler.timesteps.tolist(), added, strict=True):
            time = x.new_full((x.shape[0],), step / self.timesteps)
            x = self.scheduler.step(head(x, cond, time), step, x, variance_noise=draw, **options)[0]
        return x


def step_noise(noise: Float[Tensor, "b g t d"], *, steps: int) -> Float[Tensor, "steps b g t d"]:
    """Standard normal noise for every step of every sample: a function of the bytes of the sample's own initial noise.

    Zero where the initial noise is zero: the sample that stands for no noise at all has none on its way either.
    """
    rows = noise.detach().to("cpu", torch.float32).flatten(0, 1).numpy().astype("<f4") + 0.0  # -0.0 becomes 0.0
    draws = np.zeros((len(rows), steps, *noise.shape[2:]), np.float32)
    for draw, row in zip(draws, rows, strict=True):
        if row.any():
            key = int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), "little")
            np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=draw)
    return torch.from_numpy(draws.reshape(*noise.shape[:2], steps, *noise.shape[2:])).to(noise).movedim(2, 0)
