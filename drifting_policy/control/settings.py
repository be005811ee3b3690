"""Settings of a controller, checked against its policy before anything moves."""

import dataclasses
import math
from typing import final

import numpy as np

from drifting_policy.control.inference import Inference
from drifting_policy.control.limits import Limits
from drifting_policy.seams import SEAMS, continues, fades
from drifting_policy.types import CheckpointError, ConfigError, PolicySpec


@final
@dataclasses.dataclass(frozen=True)
class Settings:
    """What a `Controller` is told; see there."""

    control_hz: float
    exec_steps: int
    deadline: float
    limits: Limits
    seam: str
    fade_steps: int
    measured: str | None
    max_jump: np.ndarray
    max_spread: float
    latency: float | None

    @property
    def period(self) -> float:
        """Seconds of one control step."""
        return 1 / self.control_hz

    @property
    def continues(self) -> bool:
        """Whether the policy is told the commands that are settled."""
        return continues(self.seam)

    @property
    def blended(self) -> int:
        """Steps that lead over from one chunk to the next."""
        return self.fade_steps if fades(self.seam) else 0

    def check(self, inference: Inference, *, contract: str | None) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: a setting that is out of range, or does not fit the policy.
            CheckpointError: a policy of another contract.
        """
        spec = inference.spec
        if contract is not None and contract != spec.contract_hash:
            raise CheckpointError(
                f"This robot was set up for the contract {contract}, but the policy's is {spec.contract_hash}: keys, shapes, "
                "units, horizons or rate differ. Use the policy that belongs to the robot, or check it and change the contract."
            )
        if not 0 < self.control_hz < math.inf:
            raise ConfigError(f"control_hz must be positive and finite; got {self.control_hz}.")
        self._check_timing(spec)
        self._check_seam(inference)
        if self.measured is not None and (
            self.measured not in spec.observations or spec.observations[self.measured].shape != spec.action.shape
        ):
            raise ConfigError(
                f"measured must name an observation of the action's shape {spec.action.shape}; '{self.measured}' is none."
            )
        if self.max_jump.shape not in {(), spec.action.shape}:
            raise ConfigError(
                f"max_jump must be one number or one per dimension {spec.action.shape}; got {self.max_jump.shape}."
            )
        if self.measured is None and np.isfinite(self.max_jump).any():
            raise ConfigError("max_jump compares the first command with the measured position; name its key in measured.")
        if not (self.max_jump > 0).all() or not self.max_spread > 0:
            raise ConfigError("max_jump and max_spread must be positive.")

    def _check_timing(self, spec: PolicySpec) -> None:
        ahead = spec.pred_horizon - spec.first_executed
        if not 1 <= self.exec_steps <= ahead:
            raise ConfigError(
                f"exec_steps must lie between 1 and the {ahead} planned steps from now on; got {self.exec_steps}."
            )
        if not 0 < self.deadline < math.inf:
            raise ConfigError(f"deadline must be positive and finite, in seconds; got {self.deadline}.")
        if self.exec_steps + self.deadline * self.control_hz > ahead + 1e-9:
            longest = (ahead - self.exec_steps) * self.period
            raise ConfigError(
                f"A chunk has {ahead} steps from now on: with exec_steps={self.exec_steps} it lasts for a deadline of at most "
                f"{longest:.4g} s; got {self.deadline:g}. Plan more often, or give less time."
            )

    def _check_seam(self, inference: Inference) -> None:
        if self.seam not in SEAMS:
            raise ConfigError(f"Unknown seam '{self.seam}'; choose one of {list(SEAMS)}.")
        if self.fade_steps < 1:
            raise ConfigError(f"fade_steps must be at least 1; got {self.fade_steps}.")
        if self.continues and inference.max_prefix == 0:
            raise ConfigError(
                "This policy was not trained to continue a prefix (max_prefix is 0); choose the seam snap or fade."
            )
        if self.latency is not None and not 0 <= self.latency < math.inf:
            raise ConfigError(f"latency must be finite and not negative, in seconds; got {self.latency}.")
