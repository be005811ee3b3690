"""The learning-rate schedule against its closed form, and which weights decay."""

import math

import pytest
import torch
from torch import nn

from drifting_policy.training.optim import learning_rate_factor, make_optimizer


@pytest.mark.parametrize(
    ("steps", "warmup", "final"), [(100, 10, 0.001), (50, 0, 0.2), (7, 1, 0.0), (20, 20, 0.5), (5, 9, 0.1)]
)
def test_schedule_warms_up_and_falls_along_a_cosine(steps: int, warmup: int, final: float) -> None:
    factors = [learning_rate_factor(s, steps=steps, warmup_steps=warmup, final_factor=final) for s in range(steps + 3)]
    for step, factor in enumerate(factors):
        turn = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
        falling = final + (1 - final) * math.cos(math.pi * turn / 2) ** 2
        assert factor == pytest.approx((step + 1) / warmup if step < warmup else falling)
    assert 0 < max(factors) <= 1
    if warmup < steps:
        assert max(factors) == factors[warmup] == 1
        assert factors[steps:] == pytest.approx([final] * 3)


def test_only_matrices_decay() -> None:
    layer = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Conv1d(2, 2, 1))
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    optimizer = make_optimizer(layer.parameters(), learning_rate=0.1, betas=[0.9, 0.99], weight_decay=0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in layer.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] * (0.95 if value.ndim > 1 else 1))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.99)}


def test_every_weight_is_trained() -> None:
    layer = nn.Linear(3, 2)
    before = [value.detach().clone() for value in layer.parameters()]
    optimizer = make_optimizer(iter(layer.parameters()), learning_rate=0.1, betas=[0.9, 0.99], weight_decay=0.0)
    layer(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    for old, new in zip(before, layer.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 0.1)  # the first step of Adam has the length of the rate
