"""Parity: how far an exported policy is from the policy that it was made of, measured on equal observations and noise."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch

from drifting_policy.demonstrations import Demonstrations
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import Policy, PolicySpec

TOLERANCE = 1e-5  # float32, in network units, and in shares of the range of each element of the action
BATCHES = (1, 2, 3, 8)
RECORDED, RANDOM = "recorded", "random"


@final
@dataclass(frozen=True)
class Difference:
    """The largest absolute difference over the chunks of one batch.

    Attributes:
        observations: "recorded" or "random".
        batch: rows.
        noise: "zero" or "normal".
        prefix: committed commands.
        network: in network units.
        raw: in raw units.
        relative: in raw units, as a share of the demonstrated range of each element of the action.
    """

    observations: str
    batch: int
    noise: str
    prefix: int
    network: float
    raw: float
    relative: float


@final
@dataclass(frozen=True)
class Parity:
    """All differences, and what they amount to."""

    differences: tuple[Difference, ...]

    @property
    def largest(self) -> dict[str, float]:
        """The largest difference in each unit; NaN where one is."""
        return {
            unit: float(np.max([getattr(row, unit) for row in self.differences])) for unit in ("network", "raw", "relative")
        }

    @property
    def holds(self) -> bool:
        """Whether the two are the same policy, up to rounding in float32."""
        return self.largest["network"] <= TOLERANCE and self.largest["relative"] <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        kinds = sorted({row.observations for row in self.differences})
        return {
            "holds": self.holds,
            "tolerance": TOLERANCE,
            "largest": self.largest,
            "observations": kinds,
            "chunks": sum(row.batch for row in self.differences),
            "differences": [asdict(row) for row in self.differences],
        }


def compare(policy: DriftingPolicy, exported: Policy, *, span: np.ndarray, demonstrations: Demonstrations | None) -> Parity:
    """The differences between `policy` and `exported` for random and, with `demonstrations`, recorded observations.

    `span` (d,) is the demonstrated range of each element of the action in raw units. Seeds are fixed.
    """
    rng = np.random.Generator(np.random.Philox(key=0))
    scale = policy.normalizer.get_buffer("scale_action").cpu().numpy()
    share = np.where(span > 0, span, 1)
    prefixes = sorted({0, min(1, policy.max_prefix), policy.max_prefix})
    differences = []
    for kind, noise_name, prefix_steps in itertools.product((RECORDED, RANDOM), ("zero", "normal"), prefixes):
        if kind == RECORDED and demonstrations is None:
            continue
        for batch in BATCHES:
            if demonstrations is not None and kind == RECORDED:
                obs = recorded_observations(policy.spec, demonstrations, batch=batch, rng=rng)
            else:
                obs = random_observations(policy, batch=batch, rng=rng)
            drawn = rng.standard_normal((batch, *policy.spec.sample_shape), dtype=np.float32)
            noise = drawn if noise_name == "normal" else None
            prefix = _commands(policy, batch=batch, steps=prefix_steps, rng=rng)
            gap = np.abs(
                policy.act(obs, noise=noise, prefix=prefix).astype(np.float64) - exported.act(obs, noise=noise, prefix=prefix)
            )
            sizes = (float((gap * scale).max()), float(gap.max()), float((gap / share).max()))
            differences.append(Difference(kind, batch, noise_name, prefix_steps, *sizes))
    return Parity(tuple(differences))


def recorded_observations(
    spec: PolicySpec, demonstrations: Demonstrations, *, batch: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Windows "b to ..." that end at steps drawn among all; the first step of an episode is repeated to fill them."""
    ends = np.asarray(demonstrations.episode_ends)
    newest = rng.integers(0, ends[-1], batch)
    starts = np.concatenate([[0], ends])[np.searchsorted(ends, newest, side="right")]
    steps = np.maximum(newest[:, None] + np.arange(1 - spec.obs_horizon, 1), starts[:, None])
    return {key: np.stack([demonstrations.observations[key][rows] for rows in steps]) for key in spec.observations}


def random_observations(policy: DriftingPolicy, *, batch: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Observations "b to ...": standard normal in network units, and images of random bytes."""
    drawn = {}
    for key, array in policy.spec.observations.items():
        shape = (batch, policy.spec.obs_horizon, *array.shape)
        if array.is_image:
            drawn[key] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            drawn[key] = _raw(policy, key, rng.standard_normal(shape, dtype=np.float32))
    return drawn


def _commands(policy: DriftingPolicy, *, batch: int, steps: int, rng: np.random.Generator) -> np.ndarray | None:
    """Committed commands "b k d" anywhere in the demonstrated range; None for none."""
    if not steps:
        return None
    shape = (batch, steps, *policy.spec.action.shape)
    return _raw(policy, "action", rng.uniform(-1, 1, shape).astype(np.float32))


def _raw(policy: DriftingPolicy, key: str, values: np.ndarray) -> np.ndarray:
    device = policy.normalizer.get_buffer("scale_action").device
    raw: np.ndarray = policy.normalizer.unnormalize(key, torch.from_numpy(values).to(device)).cpu().numpy()
    return raw
