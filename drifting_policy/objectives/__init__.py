"""Training objectives, by the names that configurations use."""

from drifting_policy.objectives.drift import DriftObjective
from drifting_policy.objectives.objective import Loss, Objective
from drifting_policy.objectives.regression import RegressionObjective

OBJECTIVES = {"drift": DriftObjective, "regression": RegressionObjective}

__all__ = ["OBJECTIVES", "Loss", "Objective"]
