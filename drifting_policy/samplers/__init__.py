"""Samplers, by the names that checkpoints use."""

from drifting_policy.samplers.diffusion import DiffusionSampler
from drifting_policy.samplers.flow import FlowSampler
from drifting_policy.samplers.sampler import OneStep, Sampler

SAMPLERS = {"one_step": OneStep, "flow": FlowSampler, "diffusion": DiffusionSampler}

__all__ = ["SAMPLERS", "Sampler"]
