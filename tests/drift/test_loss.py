"""The drifting loss: its value, its gradient, and its sum over feature maps."""

import dataclasses

import pytest
import torch
from torch import Tensor

from drifting_policy.drift import Field, drift, drift_loss, drift_loss_features
from drifting_policy.drift.definitions import Grouping
from drifting_policy.drift.loss import DriftOptions

OPTIONS: list[DriftOptions] = [
    {},
    {"scale": "condition", "force": "condition"},
    {"scale": "none", "force": "none", "affinity_floor": 0.0},
    {"kernel": "gaussian", "coupling": "row", "temperatures": (0.5,)},
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("options", OPTIONS)
def test_value_is_the_mean_square_velocity(options: DriftOptions) -> None:
    loss, field = drift_loss(normal(3, 4, 2), normal(3, 5, 2, seed=1), **options)
    torch.testing.assert_close(loss, field.velocity.square().mean(dim=(1, 2)))
    torch.testing.assert_close(field.velocity, drift(normal(3, 4, 2), normal(3, 5, 2, seed=1), **options).velocity)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_is_the_velocity_and_reaches_x_alone(options: DriftOptions) -> None:
    x, pos, neg = normal(3, 4, 2), normal(3, 5, 2, seed=1), normal(3, 1, 2, seed=2)
    loss, field = drift_loss(x.requires_grad_(), pos.requires_grad_(), neg.requires_grad_(), **options)
    loss.mean().backward()
    torch.testing.assert_close(x.grad, -2 * field.velocity / (x.numel() * field.unit))
    assert pos.grad is None
    assert neg.grad is None


def test_full_step_against_the_gradient_lands_on_the_drifted_sample() -> None:
    x, pos = normal(2, 3, 2).requires_grad_(), normal(2, 3, 2, seed=1)
    loss, field = drift_loss(x, pos, scale="condition")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    step = field.unit**2 * x[0].numel() / 2
    torch.testing.assert_close(x - step * gradient, x + field.unit * field.velocity)


def test_single_temperature_costs_one_whatever_the_samples() -> None:
    for distance in (0.1, 10.0):
        loss, _ = drift_loss(normal(3, 4, 2), normal(3, 5, 2, seed=1) + distance, temperatures=(0.05,))
        torch.testing.assert_close(loss.mean(), torch.ones((), dtype=torch.float64))


def test_half_precision_samples_are_compared_in_float32() -> None:
    x, pos = normal(3, 4, 2).bfloat16().requires_grad_(), normal(3, 5, 2, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = drift_loss(x, pos)
    loss.mean().backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, drift_loss(x.float(), pos.float())[0])
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_feature_maps_add_up() -> None:
    small = (normal(3, 4, 2), normal(3, 5, 2, seed=1), None)
    large = (normal(3, 4, 6, 70, seed=2), normal(3, 5, 6, 70, seed=3), normal(3, 2, 6, 70, seed=4))
    weight = normal(3, 4, seed=5).abs()
    loss, fields = drift_loss_features({"a": small, "b": large}, temperatures=(0.1, 0.3), gen_weight=weight)

    folded = [part.movedim(2, 1).reshape(18, -1, 70) for part in large]
    expected, field = drift_loss(*folded, temperatures=(0.1, 0.3), gen_weight=weight.repeat_interleave(6, 0))
    alone, _ = drift_loss(*small, temperatures=(0.1, 0.3), gen_weight=weight)
    torch.testing.assert_close(loss, alone + expected.reshape(3, 6).mean(dim=1))
    torch.testing.assert_close(fields["b"].velocity, field.velocity)
    assert list(fields) == ["a", "b"]


@pytest.mark.parametrize("force", ["batch", "condition", "none"])
@pytest.mark.parametrize("scale", ["batch", "condition", "none"])
@pytest.mark.parametrize("b", [1, 3])
def test_maps_of_one_shape_are_treated_together_as_if_alone(b: int, scale: Grouping, force: Grouping) -> None:
    options: DriftOptions = {"temperatures": (0.1, 0.3), "scale": scale, "force": force}
    options["gen_weight"], options["neg_weight"] = normal(b, 20, seed=5).abs(), normal(b, 6, seed=6).abs()

    def draw(seed: int, *, f: int = 70) -> tuple[Tensor, Tensor, Tensor]:
        x, pos, neg = (normal(b, count, 2, f, seed=seed + i) * (1 + seed) for i, count in enumerate((20, 9, 6)))
        return x.requires_grad_(), pos + 0.5, neg

    maps = {"a": draw(1), "other": draw(20, f=80), "b": draw(40), "c": draw(60)}
    loss, fields = drift_loss_features(maps, **options)
    assert list(fields) == list(maps)
    alone = {name: drift_loss_features({name: triple}, **options) for name, triple in maps.items()}
    torch.testing.assert_close(loss, sum(value for value, _ in alone.values()))
    for name, (_, one) in alone.items():
        for entry in dataclasses.fields(Field):
            torch.testing.assert_close(
                getattr(fields[name], entry.name), getattr(one[name], entry.name), msg=f"{name} {entry.name}"
            )
    made = [triple[0] for triple in maps.values()]
    together, apart = (torch.autograd.grad(value.sum(), made) for value in (loss, sum(value for value, _ in alone.values())))
    torch.testing.assert_close(together, apart)


def test_no_feature_map_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one feature map"):
        drift_loss_features({})
