"""DriftingPolicy: normalizer, encoder, generator and sampler as one stateless map from observations to action chunks."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting_policy.models import ENCODERS, GENERATORS
from drifting_policy.normalize import Normalizer
from drifting_policy.samplers import SAMPLERS, Sampler
from drifting_policy.types import ConfigError, ObservationError, PolicySpec, check_obs

ONE_STEP = {"name": "one_step"}


class DriftingPolicy(nn.Module):
    """Draws a whole action chunk, in one network evaluation unless its sampler takes several steps.

    NumPy at the boundary, stateless, owns no randomness.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        encoder: Mapping[str, Any],
        generator: Mapping[str, Any],
        noise_scale: float = 1.0,
        clip: float | None = 1.0,
        sampler: Mapping[str, Any] = ONE_STEP,
    ) -> None:
        """A policy with fresh weights.

        Args:
            spec: What the policy sees and commands.
            encoder: Registered `name` and keyword arguments of the observation encoder.
            generator: Registered `name` and keyword arguments of the action head.
            noise_scale: What the noise is multiplied by before it enters the network; 0 makes the policy deterministic.
            clip: Bound of the action in network units, or None. With `range` normalisation 1 keeps every command inside
                the range that was demonstrated; an element that is constant there may stray from it by 1 raw unit.
            sampler: Registered `name` and keyword arguments of what turns noise into a chunk by the action head.

        Raises:
            ConfigError: on an unknown name, or a sampler that the action head was not made for.
        """
        super().__init__()
        self.spec = spec
        self.recipe: dict[str, Any] = copy.deepcopy(
            {"encoder": dict(encoder), "generator": dict(generator), "noise_scale": noise_scale, "clip": clip}
        )
        self.noise_scale, self.clip = noise_scale, clip
        self.normalizer = Normalizer(
            {key: () if array.is_image else array.shape for key, array in spec.observations.items()}
            | {"action": spec.action.shape}
        )
        encoder_class, encoder_options = _lookup("encoder", ENCODERS, encoder)
        self.encoder = encoder_class(observations=spec.observations, obs_horizon=spec.obs_horizon, **encoder_options)
        self.recipe["encoder"] |= self.encoder.settled
        generator_class, generator_options = _lookup("generator", GENERATORS, generator)
        self.generator = generator_class(
            sample_shape=spec.sample_shape,
            tokens=self.encoder.tokens,
            embed_dim=self.encoder.embed_dim,
            **generator_options,
        )
        self.sampler = self._build_sampler(sampler)
        self.recipe["sampler"] = dict(sampler)

    @property
    def evaluations(self) -> int:
        """How often the action head is evaluated for one plan."""
        return self.sampler.evaluations

    def resample(self, **changes: Any) -> None:
        """Change settings of the sampler, such as `steps`; the weights stay.

        Raises:
            ConfigError: on a setting that the sampler does not have, or a value that it refuses.
        """
        settings = self.recipe["sampler"]
        if unknown := sorted(set(changes) - set(settings)):
            raise ConfigError(
                f"The sampler '{settings['name']}' of this policy has no setting {unknown}; it has {sorted(settings)}."
            )
        self.sampler = self._build_sampler(settings | changes)
        self.recipe["sampler"] = settings | changes

    def _build_sampler(self, settings: Mapping[str, Any]) -> Sampler:
        sampler_class, sampler_options = _lookup("sampler", SAMPLERS, settings)
        sampler: Sampler = sampler_class(**sampler_options)
        if sampler.timed != (self.generator.time is not None):
            raise ConfigError(
                f"The sampler '{settings['name']}' does not fit the action head: only one of the two knows a time."
            )
        return sampler

    def encode(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "b s e"]:
        """Conditioning tokens for raw observations "b to ..."."""
        tokens: Tensor = self.encoder({key: self.normalizer.normalize(key, obs[key]) for key in self.spec.observations})
        return tokens

    def forward(self, obs: Mapping[str, Tensor], noise: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Action chunks in raw units for raw observations "b to ..."."""
        return self.draw(obs, noise * self.noise_scale)

    def draw(self, obs: Mapping[str, Tensor], noise: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The same for noise that has its scale already; `forward` gives it that of use, a diagnosis that of training."""
        return self.decode(self.encode(obs), noise)

    def decode(self, cond: Float[Tensor, "b s e"], noise: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The same for the tokens of `encode`, for who draws several chunks from them."""
        chunk = self.sampler(self.generator, cond, noise[:, None])[:, 0]
        if self.clip is not None:
            chunk = chunk.clamp(-self.clip, self.clip)
        return self.normalizer.unnormalize("action", chunk)

    @torch.inference_mode()
    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        """Action chunks "b t d" in raw units, float32.

        Args:
            obs: Exactly the keys of the specification, each "b to ..." in raw units, finite; images as uint8.
            noise: Standard normal "b t d", which picks the sample; None means the zero noise: the same chunk every time.

        Raises:
            ObservationError: names the key, what was expected and what came.
        """
        batch = check_obs(self.spec, obs)
        shape = (batch, *self.spec.sample_shape)
        if noise is not None and np.shape(noise) != shape:
            raise ObservationError(f"The noise must have shape {shape}; got {np.shape(noise)}.")
        if noise is not None and not np.isfinite(noise).all():
            raise ObservationError("The noise holds NaN or infinity; draw it from a standard normal distribution.")
        device = self.normalizer.get_buffer("scale_action").device
        # Copies: torch takes neither read-only arrays nor negative strides.
        tensors = {
            key: torch.as_tensor(np.array(obs[key], np.uint8 if array.is_image else np.float32), device=device)
            for key, array in self.spec.observations.items()
        }
        draw = (
            torch.zeros(shape, device=device) if noise is None else torch.as_tensor(np.array(noise, np.float32), device=device)
        )
        chunk: np.ndarray = self(tensors, draw).cpu().numpy()
        return chunk


def _lookup(kind: str, registry: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The registered class and its keyword arguments."""
    name = str(settings.get("name"))
    if name not in registry:
        raise ConfigError(f"Unknown {kind} '{name}'; choose one of {sorted(registry)}.")
    return registry[name], {key: value for key, value in settings.items() if key != "name"}
