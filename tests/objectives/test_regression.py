"""Regression is the mean squared error of the head without noise, and predicts the middle of two modes."""

import torch
from torch import Tensor

from drifting_policy.models import MlpGenerator
from drifting_policy.objectives.regression import RegressionObjective


def parts(b: int = 3) -> tuple[MlpGenerator, Tensor, Tensor]:
    torch.manual_seed(0)
    head = MlpGenerator(sample_shape=(4, 2), tokens=2, embed_dim=5, width=16, depth=1)
    return head, torch.randn(b, 2, 5), torch.randn(b, 4, 2)


def test_value_and_gradient_equal_hand_computation() -> None:
    head, cond, action = parts()
    loss = RegressionObjective().loss(head, cond, action, torch.Generator())
    chunk = head(torch.zeros(3, 1, 4, 2), cond)
    total = sum((chunk[b, 0, t, d] - action[b, t, d]).item() ** 2 for b in range(3) for t in range(4) for d in range(2))
    torch.testing.assert_close(loss.value, torch.tensor(total / 24))
    torch.testing.assert_close(loss.metrics, {"sample_error": torch.tensor((total / 24) ** 0.5)})

    by_hand = torch.autograd.grad(chunk, list(head.parameters()), 2 * (chunk.detach() - action[:, None]) / 24)
    torch.testing.assert_close(torch.autograd.grad(loss.value, list(head.parameters())), by_hand)


def test_noise_has_no_part_in_it() -> None:
    head, cond, action = parts()
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    RegressionObjective().loss(head, cond, action, generator).value.backward()
    assert torch.equal(generator.get_state(), before)
    assert RegressionObjective().noise_scale == 0.0
    assert head.noise.weight.grad is not None
    assert head.noise.weight.grad.abs().max() == 0


def test_of_two_modes_it_predicts_the_middle() -> None:
    head, cond, _ = parts(64)
    cond, generator = cond[:1].expand(64, 2, 5), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    for _ in range(100):
        side = 2.0 * torch.randint(0, 2, (64, 1, 1), generator=generator) - 1
        optimizer.zero_grad()
        RegressionObjective().loss(head, cond, side.expand(64, 4, 2), generator).value.backward()
        optimizer.step()
    assert head(torch.zeros(1, 1, 4, 2), cond[:1]).abs().max() < 0.3
