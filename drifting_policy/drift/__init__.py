"""The core of the method: the drifting field, its loss, and the queue that supplies positives.

Pure functions on tensors. Nothing here knows policies, images or configuration, and nothing draws random numbers unseen.
"""

from drifting_policy.drift.definitions import Field
from drifting_policy.drift.field import drift
from drifting_policy.drift.loss import drift_loss, drift_loss_features
from drifting_policy.drift.queue import SampleQueue

__all__ = ["Field", "SampleQueue", "drift", "drift_loss", "drift_loss_features"]
