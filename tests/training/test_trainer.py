"""The loop learns, repeats bit for bit, stops before it does harm, and leaves its input alone."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drifting_policy.data.chunks import chunk_index
from drifting_policy.models import Ema, Generator, ObservationEncoder
from drifting_policy.objectives import Loss, Objective, RegressionObjective
from drifting_policy.objectives.drift import DriftObjective
from drifting_policy.policy import DriftingPolicy
from drifting_policy.training.batches import Batch, Batches
from drifting_policy.training.optim import make_optimizer
from drifting_policy.training.trainer import NonFiniteLoss, Trainer, TrainState, encode_noisy, trainable
from drifting_policy.types import ArraySpec, PolicySpec

SPEC = PolicySpec({"x": ArraySpec((2,))}, ArraySpec((2,)), 2, 4, 2, 10.0)


def objective(name: str = "drift") -> Objective:
    options: dict[str, Any] = {"kernel": "laplace", "coupling": "row_column", "scale": "batch", "force": "batch"}
    options |= {"samples": 4, "grouping": "chunk", "condition": "observation", "temperatures": [0.05, 0.2]}
    options |= {"affinity_floor": 1e-6, "attraction": 1.0, "repulsion": 1.0, "noise_scale": 0.5}
    return DriftObjective(**options) if name == "drift" else RegressionObjective()


def make_state(seed: int = 0) -> TrainState:
    def fresh() -> DriftingPolicy:
        mlp = {"name": "mlp", "width": 24, "depth": 1}
        return DriftingPolicy(SPEC, encoder={"name": "state", "embed_dim": 8}, generator=mlp)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = fresh()
    optimizer = make_optimizer(trainable(policy), learning_rate=1e-2, betas=[0.9, 0.999], weight_decay=0.01)
    return TrainState(policy, Ema(policy, fresh(), power=0.75, max_decay=0.99), optimizer)


def make_batches(seed: int = 0, batch_size: int = 8) -> Batches:
    rng = np.random.default_rng(7)
    x, ends = rng.uniform(-1, 1, (40, 2)), np.array([15, 40])
    index = chunk_index(ends, obs_horizon=2, pred_horizon=4, exec_horizon=2)
    return Batches({"x": x}, 0.5 * x + 0.1, index, obs_horizon=2, batch_size=batch_size, seed=seed, device=torch.device("cpu"))


class Recorder:
    """A hook that remembers what it was told."""

    def __init__(self, note: Callable[[TrainState, dict[str, Tensor]], Any]) -> None:
        self.note = note
        self.notes: list[Any] = []

    def after_step(self, state: TrainState, metrics: dict[str, Tensor]) -> None:
        self.notes.append(self.note(state, metrics))


def train(state: TrainState, until: int, *, name: str = "drift", seed: int = 0, **options: Any) -> list[Tensor]:
    """The losses of the steps from where `state` stands to `until`."""
    losses = Recorder(lambda state, metrics: metrics["loss"])
    options = {"schedule": lambda step: 1.0, "learning_rate": 1e-2, "clip_norm": 1.0, "batches": make_batches(seed)} | options
    kind = options.pop("objective", objective(name))
    Trainer(state, kind, seed=seed, hooks=[*options.pop("hooks", []), losses], **options).run(until=until)
    return losses.notes


def weights(state: TrainState) -> list[Tensor]:
    """Every tensor that training changes."""
    moments = [m for slot in state.optimizer.state_dict()["state"].values() for m in slot.values()]
    tensors = [*state.policy.state_dict().values(), *state.ema.module.state_dict().values(), *moments]
    return [tensor.detach().clone() for tensor in tensors]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class OneBatch(Batches):
    """The first batch again and again."""

    def batch(self, step: int) -> Batch:
        return super().batch(0)


def one_batch() -> OneBatch:
    batches = make_batches()
    batches.__class__ = OneBatch
    assert isinstance(batches, OneBatch)
    return batches


@pytest.mark.parametrize(("name", "share"), [("drift", 0.2), ("regression", 0.1)])
def test_overfits_one_batch(name: str, share: float) -> None:
    error = Recorder(lambda state, metrics: float(metrics["sample_error"]))
    train(make_state(), 200, name=name, batches=one_batch(), hooks=[error], schedule=lambda step: 1 - step / 200)
    assert error.notes[-1] < share * error.notes[0]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_seed_decides_everything(bf16: bool) -> None:
    first, second, other = make_state(), make_state(), make_state()
    losses = train(first, 12, bf16=bf16, observation_noise=0.1)
    torch.rand(3)  # the state of the global generator must not matter
    assert same(losses, train(second, 12, bf16=bf16, observation_noise=0.1))
    assert same(weights(first), weights(second))
    assert not same(losses, train(other, 12, seed=1, bf16=bf16, observation_noise=0.1))


@pytest.mark.parametrize("name", ["drift", "regression"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_stopping_and_going_on_changes_nothing(name: str, noise: float) -> None:
    whole, half, resumed = make_state(), make_state(), make_state(seed=5)
    losses = train(whole, 13, name=name, observation_noise=noise)
    file = io.BytesIO()
    early = train(half, 6, name=name, observation_noise=noise)
    torch.save(half.to_dict(), file)
    file.seek(0)
    resumed.restore(torch.load(file, weights_only=True), half.ema.module.state_dict())
    assert resumed.step == 6
    assert same(early + train(resumed, 13, name=name, observation_noise=noise), losses)
    assert same(weights(resumed), weights(whole))


class Exploding(Objective):
    """A regression whose loss or gradient breaks at the third step, counted from 0."""

    noise_scale = 0.0

    def __init__(self, kind: str) -> None:
        self.kind, self.calls = kind, 0

    def loss(self, head: Generator, cond: Tensor, action: Tensor, generator: torch.Generator) -> Loss:
        loss = RegressionObjective().loss(head, cond, action, generator)
        self.calls += 1
        if self.calls <= 3:
            return loss
        zero = loss.value * 0
        return Loss({"nan": loss.value * math.nan, "inf": loss.value / 0, "gradient": loss.value + zero.sqrt()}[self.kind], {})


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_non_finite_loss_touches_nothing(kind: str) -> None:
    state, healthy, batches = make_state(), make_state(), make_batches()
    train(healthy, 3, name="regression")
    with pytest.raises(NonFiniteLoss, match="non-finite at step 3") as caught:
        train(state, 9, objective=Exploding(kind), batches=batches)
    assert state.step == caught.value.step == 3
    assert same(weights(state), weights(healthy))
    assert torch.equal(caught.value.batch.action, batches.batch(3).action)


def test_hooks_are_called_in_order_after_every_update() -> None:
    calls: list[tuple[str, int]] = []
    hooks = [Recorder(lambda state, metrics, name=name: calls.append((name, state.step))) for name in "ab"]  # type: ignore[misc]
    state = make_state()
    train(state, 3, hooks=hooks)
    assert calls == [(name, step) for step in (1, 2, 3) for name in "ab"]
    train(state, 3, hooks=hooks)
    assert len(calls) == 6


def test_metrics_tell_loss_norm_rate_and_what_the_objective_adds() -> None:
    seen = Recorder(lambda state, metrics: dict(metrics))
    state = make_state()
    train(state, 3, hooks=[seen], schedule=lambda step: 1 / (1 + step))
    assert {"loss", "gradient_norm", "learning_rate", "sibling_spread", "drift_rms_0.2"} <= set(seen.notes[0])
    rates = [float(metrics["learning_rate"]) for metrics in seen.notes]
    assert rates == pytest.approx([1e-2, 5e-3, 1e-2 / 3])
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([rates[-1]] * 2)
    assert not any(metrics[name].requires_grad for metrics in seen.notes for name in metrics)


def test_it_stops_between_two_updates() -> None:
    state, checks = make_state(), iter([False, False, True])
    Trainer(state, objective(), make_batches(), seed=0, schedule=lambda step: 1.0, learning_rate=1e-2, clip_norm=1.0).run(
        until=9, stop=lambda: next(checks)
    )
    assert state.step == 2


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_the_gradient_is_clipped_to_its_bound(limit: float) -> None:
    def norms(state: TrainState, metrics: dict[str, Tensor]) -> tuple[float, float]:
        gradients = [p.grad for p in trainable(state.policy) if p.grad is not None]
        return float(torch.cat([g.flatten() for g in gradients]).norm()), float(metrics["gradient_norm"])

    seen = Recorder(norms)
    train(make_state(), 5, clip_norm=limit, hooks=[seen])
    for used, told in seen.notes:
        assert used == pytest.approx(min(told, limit), rel=1e-3)
        assert 1e-3 < told < 1e3


def test_the_batch_is_not_changed() -> None:
    batches = make_batches()
    before = [batches.observations["x"].clone(), batches.action.clone()]
    batch = batches.batch(0)
    kept = [batch.obs["x"].clone(), batch.action.clone(), batch.valid.clone()]
    state = make_state()
    state.policy.normalizer.get_buffer("scale_x").fill_(3.0)
    trainer = Trainer(
        state, objective(), batches, seed=0, schedule=lambda step: 1.0, learning_rate=1.0, clip_norm=1.0, observation_noise=0.5
    )
    trainer._update(batch)
    assert same(kept, [batch.obs["x"], batch.action, batch.valid])
    assert same(before, [batches.observations["x"], batches.action])


class Window(ObservationEncoder):
    """An encoder that returns what it is given."""

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return obs["x"]


def test_noise_is_added_to_normalised_observations() -> None:
    policy, batch = make_state().policy, make_batches(batch_size=30).batch(0)
    policy.normalizer.get_buffer("scale_x").fill_(10.0)
    policy.encoder = Window()

    def jitter(noise: float, seed: int = 0) -> Tensor:
        return encode_noisy(policy, batch, noise, torch.Generator().manual_seed(seed)) - 10 * batch.obs["x"]

    assert jitter(0.0).abs().max() == 0
    assert jitter(0.3).std() == pytest.approx(0.3, rel=0.2)
    assert torch.equal(jitter(0.3), jitter(0.3))
    assert not torch.equal(jitter(0.3), jitter(0.3, seed=1))
    assert (jitter(0.3)[0] - jitter(0.3)[1]).abs().min() > 0


@pytest.mark.parametrize("name", ["drift", "regression"])
def test_bfloat16_is_used_in_the_networks_alone(name: str) -> None:
    inside, plain, reduced = [], make_state(), make_state()
    reduced.policy.generator.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    exact, losses = train(plain, 5, name=name), train(reduced, 5, name=name, bf16=True)
    assert set(inside) == {torch.bfloat16}
    assert {loss.dtype for loss in losses} == {torch.float32}
    assert {p.dtype for p in reduced.policy.parameters()} == {torch.float32}
    assert not same(exact, losses)
    torch.testing.assert_close(torch.stack(losses), torch.stack(exact), rtol=0.1, atol=0.05)
