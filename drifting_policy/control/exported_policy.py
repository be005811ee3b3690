"""ExportedPolicy: the same `act` as the policy that was exported, whoever evaluates its graph. NumPy only."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from drifting_policy.control.manifest import Manifest
from drifting_policy.types import PolicySpec, check_noise, check_obs, check_prefix

NOISE, PREFIX, COMMITTED, ACTIONS = "noise", "prefix", "committed", "actions"  # names in the graph, beside the observations
OBSERVATION = "obs."  # what stands before the key of an observation there


def input_names(spec: PolicySpec, *, max_prefix: int) -> list[str]:
    """The inputs of the graph of a policy, in their order: noise, observations, and what is committed."""
    observed = [f"{OBSERVATION}{key}" for key in sorted(spec.observations)]
    return [NOISE, *observed, *([PREFIX, COMMITTED] if max_prefix else [])]


class ExportedPolicy(ABC):
    """A policy whose normalisers, encoder and head are one graph. Stateless, and the caller owns the randomness."""

    def __init__(self, manifest: Manifest) -> None:
        """A policy with the contract of `manifest`."""
        self.manifest = manifest

    @property
    def spec(self) -> PolicySpec:
        """What the policy sees and commands."""
        return self.manifest.spec

    @property
    def max_prefix(self) -> int:
        """How many commands that are committed already it can continue."""
        return self.manifest.max_prefix

    @abstractmethod
    def _evaluate(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The chunks "b t d" of the graph for its inputs by name: contiguous, float32, images uint8, `committed` int64."""

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
        spec = self.spec
        batch = check_obs(spec, obs)
        inputs = {
            f"{OBSERVATION}{key}": np.ascontiguousarray(obs[key], np.uint8 if array.is_image else np.float32)
            for key, array in spec.observations.items()
        }
        if noise is None:
            inputs[NOISE] = np.zeros((batch, *spec.sample_shape), np.float32)
        else:
            check_noise(spec, noise, batch=batch)
            inputs[NOISE] = np.ascontiguousarray(noise, np.float32)
        count = 0 if prefix is None else check_prefix(spec, prefix, batch=batch, longest=self.max_prefix)
        if self.max_prefix:
            committed = np.zeros((batch, self.max_prefix, *spec.action.shape), np.float32)
            if prefix is not None:
                committed[:, :count] = prefix
            inputs |= {PREFIX: committed, COMMITTED: np.full(batch, count, np.int64)}
        if not batch:  # graphs are made for at least one row
            return inputs[NOISE]
        chunk = self._evaluate(inputs)
        if count:
            chunk[:, spec.first_executed : spec.first_executed + count] = prefix
        return chunk

    def warm_up(self, batch: int = 1, *, times: int = 3) -> None:
        """Evaluate the policy for observations of zeros, so that its first plan takes no longer than the others."""
        spec = self.spec
        obs = {
            key: np.zeros((batch, spec.obs_horizon, *array.shape), np.uint8 if array.is_image else np.float32)
            for key, array in spec.observations.items()
        }
        for _ in range(times):
            self.act(obs)
