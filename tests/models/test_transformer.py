"""Where the transformer takes its conditioning from, and what it refuses."""

import pytest
import torch

from drifting_policy.models import TransformerGenerator
from drifting_policy.types import ConfigError


def transformer(heads: int = 2, depth: int = 2) -> TransformerGenerator:
    return TransformerGenerator(sample_shape=(8, 2), tokens=3, embed_dim=4, width=16, depth=depth, heads=heads)


def test_width_must_be_shared_out_evenly() -> None:
    with pytest.raises(ConfigError, match="width must be a multiple of its heads; got 16 and 3"):
        transformer(heads=3)


def test_fresh_chunks_have_unit_scale() -> None:
    # A linear layer with torch's own start keeps a third of the variance of its input, here of a layer norm.
    torch.manual_seed(0)
    chunk = transformer()(torch.randn(256, 4, 8, 2), torch.randn(256, 3, 4))
    assert 0.3 < chunk.square().mean().sqrt() < 1.0


def test_every_step_attends_to_every_other_one() -> None:
    noise = torch.randn(1, 1, 8, 2, requires_grad=True)
    chunk = transformer()(noise, torch.randn(1, 3, 4))
    for step in range(8):
        (gradient,) = torch.autograd.grad(chunk[0, 0, step].square().sum(), noise, retain_graph=True)
        assert (gradient.abs().amax(dim=-1) > 0).all()


def test_without_layers_the_condition_cannot_be_heard() -> None:
    noise = torch.randn(2, 3, 8, 2)
    deaf = transformer(depth=0)
    assert torch.equal(deaf(noise, torch.zeros(2, 3, 4)), deaf(noise, torch.ones(2, 3, 4)))
