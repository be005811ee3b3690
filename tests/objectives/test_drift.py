"""The drift objective is the drifting loss of separate groups; its metrics mean what they say; it keeps both modes."""

import importlib
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drifting_policy.config import DriftConfig, arguments
from drifting_policy.drift import drift, drift_loss
from drifting_policy.models import Generator, MlpGenerator
from drifting_policy.objectives.drift import CONDITIONS, GROUPINGS, DriftObjective
from drifting_policy.types import ConfigError


class Given(Generator):
    """Answers with the samples it holds, whatever it is asked."""

    def __init__(self, samples: Tensor) -> None:
        super().__init__()
        self.samples = nn.Parameter(samples)
        self.asked: list[Tensor] = []

    def forward(self, noise: Tensor, cond: Tensor) -> Tensor:
        self.asked.append(noise)
        return self.samples


def objective(**options: Any) -> DriftObjective:
    return DriftObjective(**(arguments(DriftConfig()) | options))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_of(samples: Tensor, action: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Value, metrics and the gradient with respect to the samples "b g t d"."""
    head = Given(samples)
    loss = objective(samples=samples.shape[1], **options).loss(head, torch.zeros(len(action), 1, 1), action, torch.Generator())
    loss.value.backward()
    assert head.samples.grad is not None
    return loss.value.detach(), dict(loss.metrics), head.samples.grad


def groups(x: Tensor, grouping: str) -> list[Tensor]:
    """The points "g f" that see each other, from samples "b g t d"."""
    b, _, t, d = x.shape
    if grouping == "chunk":
        return [x[i].flatten(1) for i in range(b)]
    if grouping == "step":
        return [x[i, :, step] for i in range(b) for step in range(t)]
    return [x[i, :, :, dim] for i in range(b) for dim in range(d)]


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("scope", ["condition", "batch"])
def test_each_grouping_equals_a_loop_over_its_groups(grouping: str, scope: str) -> None:
    x, action = normal(3, 4, 5, 2), normal(3, 5, 2, seed=1)
    options: Any = {"scale": scope, "force": scope, "temperatures": (0.05, 0.5), "affinity_floor": 1e-4}
    value, metrics, gradient = loss_of(x, action, grouping=grouping, **options)

    leaf = x.clone().requires_grad_()
    points, demos = groups(leaf, grouping), groups(action[:, None], grouping)
    if scope == "condition":
        each = [drift_loss(p[None], q[None], **options) for p, q in zip(points, demos, strict=True)]
        expected, rms = torch.cat([loss for loss, _ in each]).mean(), torch.stack([field.rms for _, field in each]).mean(0)
    else:
        losses, field = drift_loss(torch.stack(points), torch.stack(demos), **options)
        expected, rms = losses.mean(), field.rms
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0])
    torch.testing.assert_close(torch.stack([metrics["drift_rms_0.05"], metrics["drift_rms_0.5"]]), rms)


def test_every_option_reaches_the_field() -> None:
    x, action = normal(3, 4, 5, 2), normal(3, 5, 2, seed=1)
    options: list[dict[str, Any]] = [
        {},
        {"grouping": "step"},
        {"grouping": "dim"},
        {"temperatures": (0.3,)},
        {"kernel": "gaussian"},
        {"coupling": "row"},
        {"scale": "condition"},
        {"force": "condition"},
        {"affinity_floor": 0.0},
        {"condition": "batch"},
    ]
    gradients = [loss_of(x, action, **option)[2] for option in options]
    for i, first in enumerate(gradients):
        assert all((first - other).abs().max() > 1e-6 for other in gradients[i + 1 :])


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_batch_as_one_condition_pools_samples_and_demonstrations(grouping: str) -> None:
    x, action = normal(3, 4, 5, 2), normal(3, 5, 2, seed=1)
    value, metrics, gradient = loss_of(x, action, grouping=grouping, condition="batch", affinity_floor=0.0)
    leaf = x.clone().requires_grad_()
    samples, demos = (torch.stack(groups(each.flatten(0, 1)[None], grouping)) for each in (leaf, action[:, None]))
    assert (samples.shape[1], demos.shape[1]) == (12, 3)
    losses, _ = drift_loss(samples, demos, affinity_floor=0.0)
    torch.testing.assert_close(value, losses.mean())
    torch.testing.assert_close(gradient, torch.autograd.grad(losses.mean(), leaf)[0])
    torch.testing.assert_close(metrics["sibling_spread"], x.flatten(0, 1).var(0, correction=0).mean().sqrt())
    torch.testing.assert_close(metrics["sample_error"], (x - action[:, None]).square().mean().sqrt())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_one_observation_is_its_own_batch(condition: str) -> None:
    x, action = normal(1, 6, 5, 2), normal(1, 5, 2, seed=1)
    value, _, gradient = loss_of(x, action, condition=condition)
    expected, _, reference = loss_of(x, action)
    torch.testing.assert_close((value, gradient), (expected, reference), rtol=0, atol=0)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_single_sample_is_regressed_onto_the_demonstration(grouping: str) -> None:
    x, action = normal(6, 1, 4, 2), normal(6, 4, 2, seed=1)
    _, _, gradient = loss_of(x, action, grouping=grouping)
    towards = nn.functional.cosine_similarity(gradient.flatten(), (x - action[:, None]).flatten(), dim=0)
    assert towards > 0.9999
    assert loss_of(x, action, grouping=grouping, affinity_floor=0.0)[2].abs().max() < 1e-9


def test_metrics_mean_what_they_say() -> None:
    action = normal(3, 4, 2)
    same = action[:, None].expand(3, 5, 4, 2)
    _, metrics, gradient = loss_of(same.clone(), action)
    assert set(metrics) == {"sibling_spread", "sample_error", "drift_rms_0.02", "drift_rms_0.05", "drift_rms_0.2"}
    assert all(value < 1e-6 for value in metrics.values())
    assert gradient.abs().max() < 1e-6

    _, metrics, _ = loss_of(same + 0.3, action)
    torch.testing.assert_close((metrics["sibling_spread"], metrics["sample_error"]), (torch.tensor(0.0), torch.tensor(0.3)))
    apart = torch.tensor([-2.0, -2.0, 0.0, 2.0, 2.0])[:, None, None]
    _, metrics, _ = loss_of(same + apart + 3, action)
    torch.testing.assert_close(metrics["sibling_spread"].square(), torch.tensor(16 / 5))
    torch.testing.assert_close(metrics["sample_error"].square(), torch.tensor(9 + 16 / 5))
    assert metrics["drift_rms_0.2"] > 0


def test_noise_is_unit_noise_from_the_generator() -> None:
    asked = []
    for seed in (1, 1, 2):
        head = Given(normal(200, 4, 5, 2))
        generator = torch.Generator().manual_seed(seed)
        objective(noise_scale=0.5).loss(head, torch.zeros(200, 1, 1), normal(200, 5, 2), generator)
        asked += head.asked
    assert asked[0].shape == (200, 4, 5, 2)
    assert torch.equal(asked[0], asked[1])
    assert (asked[0] != asked[2]).all()
    assert abs(asked[0].std().item() - 1) < 0.05
    assert objective(noise_scale=0.5).noise_scale == 0.5


def test_attraction_alone_pulls_straight_at_the_demonstration() -> None:
    x, action = normal(3, 4, 5, 2), normal(3, 5, 2, seed=1)
    towards = action[:, None] - x
    alone, both = (-loss_of(x, action, repulsion=repulsion)[2] for repulsion in (0.0, 1.0))
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(alone.flatten(2), towards.flatten(2), dim=2), torch.ones(3, 4))
    assert cosine(both.flatten(2), towards.flatten(2), dim=2).max() < 0.99


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grouping": "flat"}, r"Unknown grouping 'flat'; choose one of \['chunk', 'dim', 'step'\]"),
        ({"condition": "task"}, r"Unknown condition 'task'; choose one of \['batch', 'observation'\]"),
        ({"samples": 0}, "at least 1 sample per observation; got 0"),
        ({"kernel": "cauchy"}, "cannot be built: .*laplace, gaussian"),
        ({"coupling": "column"}, "cannot be built: .*row_column, row, none"),
        ({"scale": "sample"}, "cannot be built: .*batch, condition, none"),
        ({"force": "all"}, "cannot be built: .*batch, condition, none"),
        ({"temperatures": []}, "cannot be built: .*temperatures"),
        ({"temperatures": [0.1, -0.1]}, "cannot be built: .*temperatures"),
        ({"affinity_floor": -1.0}, "cannot be built: .*affinity_floor"),
        ({"attraction": -1.0}, "cannot be built: .*attraction"),
        ({"attraction": 0.0, "repulsion": 0.0}, "cannot be built: .*must not both be 0"),
    ],
)
def test_impossible_options_are_refused_at_once(options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the test run's own checks of annotations, which users do not have.
    monkeypatch.setattr(importlib.import_module(DriftObjective.__module__), "drift", inspect.unwrap(drift))
    with pytest.raises(ConfigError, match=words):
        objective(**options)


def test_it_keeps_both_modes_of_one_observation() -> None:
    # One demonstration at a time, on either side; regression predicts 0 here. Without a floor, and with distances of each row
    # by itself: a floor pulls towards the mean, and far rows of a common scale would fall silent.
    torch.manual_seed(0)
    head = MlpGenerator(sample_shape=(1, 2), tokens=1, embed_dim=2, width=32, depth=1)
    learned = objective(samples=4, affinity_floor=0.0, scale="condition", force="condition")
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 200)
    cond, generator = torch.ones(32, 1, 2), torch.Generator().manual_seed(0)
    for _ in range(200):
        side = 2.0 * torch.randint(0, 2, (32, 1, 1), generator=generator) - 1
        optimizer.zero_grad()
        learned.loss(head, cond, side.expand(32, 1, 2), generator).value.backward()
        optimizer.step()
        schedule.step()
    chunks = head(torch.randn(1, 1000, 1, 2, generator=generator), cond[:1])[0, :, 0].detach()
    near = {side: (chunks - side).square().mean(dim=1).sqrt() < 0.3 for side in (-1, 1)}
    assert all(0.3 < share.float().mean() < 0.7 for share in near.values())
    assert (near[-1] | near[1]).float().mean() > 0.75


def test_a_sample_counts_among_its_siblings_where_the_repulsion_is_left_open() -> None:
    """The mean of all g siblings deviates from a sample by 1 - 1/g of what the mean of the others does."""
    deviations = normal(7, 3)
    others = (deviations.sum(dim=0) - deviations) / 6
    factor = objective(samples=7, repulsion=None).options["repulsion"]
    torch.testing.assert_close(factor * (others - deviations), deviations.mean(dim=0) - deviations)
    assert objective(condition="batch", repulsion=None).options["repulsion"] == 1
    assert objective().options["repulsion"] == 1
