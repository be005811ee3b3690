"""Memory that is used again, and never while somebody reads it."""

import gc
from itertools import pairwise

import pytest
import torch

from drifting_policy.drift import drift_loss_features
from drifting_policy.drift.workspace import Workspace

LIKE = torch.empty(())


def test_named_memory_is_the_same_and_grows() -> None:
    workspace = Workspace()
    first = workspace.empty("a", (3, 4), LIKE, torch.float32)
    assert workspace.empty("a", (2, 5), LIKE, torch.float32).data_ptr() == first.data_ptr()
    assert workspace.empty("b", (2, 5), LIKE, torch.float32).data_ptr() != first.data_ptr()
    assert workspace.empty("a", (5, 5), LIKE, torch.float32).shape == (5, 5)
    assert workspace.empty("a", (2,), LIKE, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2)])
def test_lent_memory_has_shape_and_type_and_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    workspace = Workspace()
    lent = workspace.lend(shape, LIKE, dtype).fill_(1)
    assert (lent.shape, lent.dtype) == (shape, dtype)
    assert bool((lent == 1).all())
    place = lent.data_ptr()
    del lent
    assert workspace.lend(shape, LIKE, dtype).data_ptr() == place


def test_lent_memory_stays_with_whoever_holds_a_part_of_it() -> None:
    workspace = Workspace()
    part = workspace.lend((4, 4), LIKE, torch.float32).zero_()[1:, 2]
    others = [workspace.lend((4, 4), LIKE, torch.float32).fill_(1) for _ in range(5)]
    assert bool((part == 0).all())
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairwise(sorted(others, key=torch.Tensor.data_ptr)))
    leaf = torch.ones((), requires_grad=True)
    product = (leaf * others.pop()).sum()  # which autograd holds
    workspace.lend((4, 4), LIKE, torch.float32).fill_(7)
    product.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad == 16
    del workspace
    gc.collect()
    assert bool((part == 0).all())


def test_gradients_and_fields_outlive_the_next_calls() -> None:
    """Those of a leaf, which keeps its gradient, and those of several losses before they go backward."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 40, 3, 70, generator=generator) for _ in range(3)]
    fresh, workspace = gradients(maps, None), Workspace()
    again = gradients(maps, workspace)
    for _ in range(2):
        gradients([2 * each for each in maps], workspace)
    assert all(torch.equal(a, b) for a, b in zip(again, fresh, strict=True))


def gradients(maps: list[torch.Tensor], workspace: Workspace | None) -> list[torch.Tensor]:
    """Gradients, losses and velocities of the maps, each drawn to the next."""
    leaves = [each.clone().requires_grad_() for each in maps]
    found = [
        drift_loss_features({"": (x, pos, None)}, workspace=workspace)
        for x, pos in zip(leaves, maps[1:] + maps[:1], strict=True)
    ]
    torch.stack([loss.sum() for loss, _ in found]).sum().backward()  # type: ignore[no-untyped-call]
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(grads) == len(maps)
    return [*grads, *(loss.detach() for loss, _ in found), *(fields[""].velocity.clone() for _, fields in found)]
