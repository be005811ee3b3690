"""A fresh MLP head predicts the middle of the data for every noise, and its blocks begin as the identity."""

import torch

from drifting_policy.models import MlpGenerator
from drifting_policy.models.mlp import MlpBlock


def test_a_fresh_head_predicts_the_middle_of_the_data() -> None:
    head = MlpGenerator(sample_shape=(16, 2), tokens=2, embed_dim=64, width=256, depth=4)
    for size in (1.0, 5.0):
        chunk = head(size * torch.randn(8, 4, 16, 2), size * torch.randn(8, 2, 64))
        assert 0 < chunk.abs().max() < 0.1


def test_a_fresh_block_changes_nothing() -> None:
    x = torch.randn(2, 3, 8)
    block = MlpBlock(width=8, cond_dim=4)
    assert torch.equal(block(x, torch.randn(2, 1, 4)), x)
    torch.nn.init.ones_(block.outer.weight)
    assert (block(x, torch.randn(2, 1, 4)) - x).abs().min() > 0
