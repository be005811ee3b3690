"""Training objectives, by the names that configurations use."""

from drifting_policy.objectives.diffusion import DiffusionObjective
from drifting_policy.objectives.drift import DriftObjective
from drifting_policy.objectives.flow import FlowObjective
from drifting_policy.objectives.objective import Loss, Objective
from drifting_policy.objectives.regression import RegressionObjective

OBJECTIVES = {
    "drift": DriftObjective,
    "regression": RegressionObjective,
    "diffusion": DiffusionObjective,
    "flow": FlowObjective,
}

__all__ = ["OBJECTIVES", "Loss", "Objective"]
