"""How a plan takes over from the one before it, and what else is chosen about executing plans. NumPy only."""

from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from drifting_policy.types import ConfigError, Policy, PolicySpec

SEAMS = ("snap", "fade", "prefix", "prefix_fade")


def continues(seam: str) -> bool:
    """Whether the policy is told the commands that are committed, for its plan to continue them."""
    return seam.startswith("prefix")


def fades(seam: str) -> bool:
    """Whether two plans are blended."""
    return seam.endswith("fade")


@final
@dataclass(frozen=True)
class Execution:
    """How plans are executed, apart from their latency; the defaults are those of a receding horizon.

    With d steps of latency the commands of the plan before go on for d steps: they are committed. Then

        snap          the new plan takes over at once;
        fade          the two plans are blended for `fade_steps` steps, or as many as both have commands for;
        prefix        the policy was told the committed commands, `commit_steps` more of them than the latency asks for, and
                      its plan continues them. It must have been trained for that (max_prefix);
        prefix_fade   both: the policy continues the committed commands, and after them the two plans are blended.

    Attributes:
        seam: one of SEAMS.
        fade_steps: steps of a fade, of which step i = 1 .. n takes the share i / (n + 1) of the new plan.
        commit_steps: commands of the plan before that a prefix keeps beyond the latency.
        exec_horizon: steps between two plans; None for that of the policy.
        held_noise: every plan of an episode has the noise of its first one, so that a policy keeps to its way of doing things.
    """

    seam: str = "snap"
    fade_steps: int = 4
    commit_steps: int = 0
    exec_horizon: int | None = None
    held_noise: bool = False

    def __post_init__(self) -> None:
        if self.seam not in SEAMS:
            raise ConfigError(f"Unknown seam '{self.seam}'; choose one of {list(SEAMS)}.")
        if self.fade_steps < 1 or self.commit_steps < 0:
            raise ConfigError(
                f"fade_steps must be at least 1 and commit_steps at least 0; got {self.fade_steps} and {self.commit_steps}."
            )
        if self.commit_steps and not self.continues:
            raise ConfigError(
                f"commit_steps={self.commit_steps} is for seam=prefix and seam=prefix_fade alone; got seam={self.seam}."
            )
        if self.exec_horizon is not None and self.exec_horizon < 1:
            raise ConfigError(f"exec_horizon must be at least 1; got {self.exec_horizon}.")

    @property
    def continues(self) -> bool:
        """Whether the policy is told what is committed."""
        return continues(self.seam)

    @property
    def fades(self) -> bool:
        """Whether two plans are blended."""
        return fades(self.seam)

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that are not the defaults."""
        usual = asdict(Execution())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    def period(self, spec: PolicySpec) -> int:
        """Steps between two plans."""
        return spec.exec_horizon if self.exec_horizon is None else self.exec_horizon

    def committed(self, latency_steps: int) -> int:
        """The commands of the plan before that are executed whatever the new one says, counted from its observation."""
        return latency_steps + (self.commit_steps if self.continues else 0)

    def check(self, policy: Policy, latency_steps: int) -> None:
        """Refuse what the chunks of `policy` are too short for, or a prefix that it was not trained to continue.

        Raises:
            ConfigError: says what is possible.
        """
        spec = policy.spec
        ahead, committed, period = spec.pred_horizon - spec.first_executed, self.committed(latency_steps), self.period(spec)
        more = f" + commit_steps = {self.commit_steps}" if self.commit_steps else ""
        if period > ahead:
            raise ConfigError(f"exec_horizon must lie between 1 and {ahead}, the planned steps from now on; got {period}.")
        if latency_steps < 0 or period + committed > ahead:
            raise ConfigError(
                f"latency_steps must lie between 0 and {max(ahead - period - self.commit_steps, 0)}, for exec_horizon + "
                f"latency_steps{more} must fit into the {ahead} planned steps from now on, and exec_horizon is {period} (a "
                f"smaller one makes room); got {latency_steps}."
            )
        if self.continues and committed > policy.max_prefix:
            raise ConfigError(
                f"seam={self.seam} commits latency_steps{more} = {committed} commands, and this policy continues at most "
                f"{policy.max_prefix}: train one with max_prefix={committed} or more, or choose seam=fade or seam=snap."
            )

    def join(self, before: np.ndarray, new: np.ndarray, *, latency_steps: int) -> np.ndarray:
        """The commands "n t d" that follow from a plan "n t d", where the plan before goes on with `before` "n r d".

        All begin with the command of the observation that the new plan was made from; r is at least as much as is committed.
        """
        joined, start = new.copy(), self.committed(latency_steps)
        joined[:, :start] = before[:, :start]
        if self.fades:
            steps = max(min(self.fade_steps, before.shape[1] - start, new.shape[1] - start), 0)
            share = (np.arange(1, steps + 1) / (steps + 1))[:, None]
            blended = slice(start, start + steps)
            joined[:, blended] = share * new[:, blended] + (1 - share) * before[:, blended]
        return joined


RECEDING = Execution()
