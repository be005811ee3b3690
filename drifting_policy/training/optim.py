"""The optimiser and its learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, betas: Sequence[float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with decoupled decay on matrices only: biases, norms and embeddings of one axis are not decayed."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), fused=True)


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int, final_factor: float) -> float:
    """What the learning rate of `step` (from 0) is multiplied by: linear warm-up, then a cosine to `final_factor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
