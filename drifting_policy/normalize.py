"""Normalizer: the affine maps between raw environment units and network units."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from drifting_policy.types import ConfigError, Stats

MODES = ("range", "standard", "identity")

# Below this span (in raw units) an element is a constant of the data: it is centred but not stretched, since stretching
# would blow sensor noise up to full scale.
SMALLEST_SPAN = 1e-4


class Normalizer(nn.Module):
    """One affine map per key, kept as buffers that travel with the weights; a key without a map raises."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Identity maps for arrays of the given per-step `shapes`; `fit` or a checkpoint fills them."""
        super().__init__()
        self.keys = tuple(sorted(shapes))
        for key in self.keys:
            if not key.isidentifier():
                raise ConfigError(f"The key '{key}' cannot be normalised under that name: use letters, digits and underscores.")
            self.register_buffer(f"scale_{key}", torch.ones(shapes[key]))
            self.register_buffer(f"offset_{key}", torch.zeros(shapes[key]))

    @staticmethod
    def fit(stats: Mapping[str, Stats], modes: Mapping[str, str]) -> "Normalizer":
        """The normaliser that maps each key by its mode.

        `range` maps minimum and maximum of the data to -1 and 1, `standard` to zero mean and unit deviation, `identity`
        leaves the key as it is.

        Raises:
            ConfigError: on an unknown mode, or where `stats` and `modes` name different keys.
        """
        if set(stats) != set(modes):
            raise ConfigError(f"Statistics exist for {sorted(stats)}, but normalisation modes for {sorted(modes)}.")
        normalizer = Normalizer({key: value.mean.shape for key, value in stats.items()})
        for key, mode in modes.items():
            scale, offset = _affine(key, stats[key], mode)
            normalizer._map(key)[0].copy_(scale)
            normalizer._map(key)[1].copy_(offset)
        return normalizer

    @property
    def device(self) -> torch.device:
        """Where the maps are, and so the policy that they belong to."""
        return self._map(self.keys[0])[0].device

    def normalize(self, key: str, values: Float[Tensor, "..."] | UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`values` in network units; trailing axes are the key's own. Images come as bytes, and become floats here."""
        scale, offset = self._map(key)
        return (values if values.is_floating_point() else values.to(scale.dtype)) * scale + offset

    def unnormalize(self, key: str, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`values` in raw units: the inverse of `normalize`."""
        scale, offset = self._map(key)
        return (values - offset) / scale

    def _map(self, key: str) -> tuple[Tensor, Tensor]:
        if key not in self.keys:
            raise ConfigError(f"The normaliser knows the keys {list(self.keys)}; it was asked for '{key}'.")
        scale, offset = self._buffers[f"scale_{key}"], self._buffers[f"offset_{key}"]  # get_buffer takes longer than the map
        assert scale is not None
        assert offset is not None
        return scale, offset


def _affine(key: str, stats: Stats, mode: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of one key, computed in float64."""
    low, high, mean, std = (torch.as_tensor(v, dtype=torch.float64) for v in (stats.min, stats.max, stats.mean, stats.std))
    if mode == "range":
        constant = high - low < SMALLEST_SPAN
        scale = torch.where(constant, 1.0, 2 / torch.where(constant, 1.0, high - low))
        return scale, -scale * (high + low) / 2
    if mode == "standard":
        scale = torch.where(std < SMALLEST_SPAN, 1.0, 1 / torch.where(std < SMALLEST_SPAN, 1.0, std))
        return scale, -scale * mean
    if mode == "identity":
        return torch.ones_like(low), torch.zeros_like(low)
    raise ConfigError(f"Key '{key}' asks for normalisation '{mode}'; choose one of {list(MODES)}.")
