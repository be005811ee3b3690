"""DriftingPolicy: normalizer, encoder, generator and sampler as one stateless map from observations to action chunks."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drifting_policy.models import ENCODERS, GENERATORS, PrefixEncoder
from drifting_policy.normalize import Normalizer
from drifting_policy.samplers import SAMPLERS, Sampler
from drifting_policy.types import ConfigError, PolicySpec, check_noise, check_obs, check_prefix

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
        max_prefix: int = 0,
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
            max_prefix: The most commands, committed already, that the policy can be asked to continue; 0 for none.

        Raises:
            ConfigError: on an unknown name, a sampler that the action head was not made for, or a prefix as long as the chunk.
        """
        super().__init__()
        longest = spec.pred_horizon - spec.first_executed - 1
        if not 0 <= max_prefix <= longest:
            raise ConfigError(
                f"max_prefix must lie between 0 and {longest}, for at least one of the {longest + 1} planned steps from now on "
                f"must be left to the policy; got {max_prefix}."
            )
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
            tokens=self.encoder.tokens + int(max_prefix > 0),
            embed_dim=self.encoder.embed_dim,
            **generator_options,
        )
        self.sampler = self._build_sampler(sampler)
        self.recipe |= {"sampler": dict(sampler), "max_prefix": max_prefix}
        self.prefix_encoder: PrefixEncoder | None = None
        if max_prefix:
            self.prefix_encoder = PrefixEncoder(
                length=max_prefix, action_dim=spec.action.shape[0], embed_dim=self.encoder.embed_dim
            )

    @property
    def max_prefix(self) -> int:
        """How many commands that are committed already it can continue."""
        return 0 if self.prefix_encoder is None else self.prefix_encoder.length

    @property
    def evaluations(self) -> int:
        """How often the action head is evaluated for one plan."""
        return self.sampler.evaluations

    def resample(self, *, noise_scale: float | None = None, **changes: Any) -> dict[str, Any]:
        """Change settings of the sampler, such as `steps`, and what the noise is multiplied by; the weights stay.

        Returns:
            The settings of the sampler, and with them the `noise_scale` that was given.

        Raises:
            ConfigError: on a setting that the sampler does not have, or a value that is out of range.
        """
        settings, given = self.recipe["sampler"], {} if noise_scale is None else {"noise_scale": noise_scale}
        if unknown := sorted(set(changes) - set(settings)):
            known = sorted({*settings, "noise_scale"} - {"name"})
            raise ConfigError(f"The sampler '{settings['name']}' of this policy has no setting {unknown}; it has {known}.")
        if noise_scale is not None and not 0 <= noise_scale < math.inf:
            raise ConfigError(f"noise_scale must be a finite number of at least 0; got {noise_scale}.")
        self.sampler = self._build_sampler(settings | changes)
        self.recipe |= {"sampler": settings | changes, **given}
        self.noise_scale = self.recipe["noise_scale"]
        return settings | changes | given

    def _build_sampler(self, settings: Mapping[str, Any]) -> Sampler:
        sampler_class, sampler_options = _lookup("sampler", SAMPLERS, settings)
        sampler: Sampler = sampler_class(**sampler_options)
        if sampler.timed != (self.generator.time is not None):
            raise ConfigError(
                f"The sampler '{settings['name']}' does not fit the action head: only one of the two knows a time."
            )
        return sampler

    def encode(self, obs: Mapping[str, Tensor], prefix: Float[Tensor, "b k d"] | None = None) -> Float[Tensor, "b s e"]:
        """Conditioning tokens for raw observations "b to ...", and for the committed commands `prefix` in raw units."""
        tokens: Tensor = self.encoder({key: self.normalizer.normalize(key, obs[key]) for key in self.spec.observations})
        return self.condition(tokens, None if prefix is None else self.normalizer.normalize("action", prefix))

    def condition(
        self,
        tokens: Float[Tensor, "b s e"],
        prefix: Float[Tensor, "b k d"] | None = None,
        counts: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b s2 e"]:
        """The tokens of the encoder, and behind them that of the committed commands, where the policy knows of such.

        `prefix` is in network units; its first `counts` commands (default: all) are committed, none without a prefix.

        Raises:
            ValueError: a prefix that is longer than `max_prefix`.
        """
        if self.prefix_encoder is None:
            if prefix is not None and prefix.shape[1]:
                raise ValueError(f"This policy was trained without prefixes; got one of {prefix.shape[1]} commands.")
            return tokens
        if prefix is None:
            prefix = tokens.new_zeros((len(tokens), 0, *self.spec.action.shape))
        if counts is None:
            counts = torch.full((len(tokens),), prefix.shape[1], device=tokens.device)
        return torch.cat([tokens, self.prefix_encoder(prefix, counts).to(tokens)], dim=1)

    def forward(
        self, obs: Mapping[str, Tensor], noise: Float[Tensor, "b t d"], prefix: Float[Tensor, "b k d"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Action chunks in raw units for raw observations "b to ..." that continue `prefix`, and repeat it nearly."""
        return self.draw(obs, noise * self.noise_scale, prefix)

    def draw(
        self, obs: Mapping[str, Tensor], noise: Float[Tensor, "b t d"], prefix: Float[Tensor, "b k d"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The same for noise that has its scale already; `forward` gives it that of use, a diagnosis that of training."""
        return self.decode(self.encode(obs, prefix), noise)

    def decode(self, cond: Float[Tensor, "b s e"], noise: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The same for the tokens of `encode`, for who draws several chunks from them."""
        chunk = self.sampler(self.generator, cond, noise.unsqueeze(1)).squeeze(1)
        if self.clip is not None:
            chunk = chunk.clamp(-self.clip, self.clip)
        return self.normalizer.unnormalize("action", chunk)

    @torch.inference_mode()
    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Action chunks "b t d" in raw units, float32.

        Args:
            obs: Exactly the keys of the specification, each "b to ..." in raw units, finite; images as uint8.
            noise: Standard normal "b t d", which picks the sample; None means the zero noise: the same chunk every time.
            prefix: Commands "b k d" in raw units, the first k from now on, which are committed already; the chunks repeat them
                exactly from index `spec.first_executed` on and continue them. None, like k = 0, leaves the policy free.

        Raises:
            ObservationError: names the key, what was expected and what came.
        """
        batch = check_obs(self.spec, obs)
        shape = (batch, *self.spec.sample_shape)
        if noise is not None:
            check_noise(self.spec, noise, batch=batch)
        committed = 0 if prefix is None else check_prefix(self.spec, prefix, batch=batch, longest=self.max_prefix)
        device = self.normalizer.device
        # Copies: torch takes neither read-only arrays nor negative strides.
        tensors = {
            key: torch.from_numpy(np.array(obs[key], np.uint8 if array.is_image else np.float32)).to(device)
            for key, array in self.spec.observations.items()
        }
        draw = torch.zeros(shape, device=device) if noise is None else torch.from_numpy(np.array(noise, np.float32)).to(device)
        if not committed:
            return np.asarray(self(tensors, draw).cpu().numpy())
        kept = np.array(prefix, np.float32)
        chunk: np.ndarray = self(tensors, draw, torch.as_tensor(kept, device=device)).cpu().numpy()
        chunk[:, self.spec.first_executed : self.spec.first_executed + committed] = kept
        return chunk


def _lookup(kind: str, registry: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The registered class and its keyword arguments."""
    name = str(settings.get("name"))
    if name not in registry:
        raise ConfigError(f"Unknown {kind} '{name}'; choose one of {sorted(registry)}.")
    return registry[name], {key: value for key, value in settings.items() if key != "name"}
