"""Hooks average, measure and save without touching the training beside which they run."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drifting_policy.checkpoint import list_checkpoints, load_policy, load_state, read_config
from drifting_policy.data.chunks import chunk_index
from drifting_policy.models import Ema, Generator
from drifting_policy.policy import DriftingPolicy
from drifting_policy.training.alarms import Watch
from drifting_policy.training.batches import Batches
from drifting_policy.training.diagnostics import sample_figures
from drifting_policy.training.hooks import CheckpointHook, LogHook, ValidationHook, remove_checkpoint
from drifting_policy.training.logging import Log
from drifting_policy.training.optim import make_optimizer
from drifting_policy.training.trainer import TrainState
from drifting_policy.types import ArraySpec, PolicySpec, Stats

SPEC = PolicySpec({"x": ArraySpec((2,))}, ArraySpec((2,)), 2, 4, 2, 10.0)
STATS = {"x": Stats.of(np.eye(2)), "action": Stats.of(np.eye(2))}


def make_policy(offset: float = 0.0) -> DriftingPolicy:
    mlp = {"name": "mlp", "width": 8, "depth": 1}
    policy = DriftingPolicy(SPEC, encoder={"name": "state", "embed_dim": 4}, generator=mlp, clip=None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(offset + 0.5 * torch.randn(parameter.shape, generator=generator))
    return policy


def make_state(step: int = 0) -> TrainState:
    policy = make_policy()
    optimizer = make_optimizer(policy.parameters(), learning_rate=0.1, betas=[0.9, 0.99], weight_decay=0.0)
    return TrainState(policy, Ema(policy, make_policy(), power=0.75, max_decay=0.9), optimizer, step)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with contextlib.closing(Log(tmp_path, steps=100, start=0, tensorboard=False)) as log:
        yield log


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def make_batches(*ends: int, seed: int = 3) -> Batches:
    rng = np.random.default_rng(seed)
    index = chunk_index(np.array(ends), obs_horizon=2, pred_horizon=4, exec_horizon=2)
    x, action = rng.normal(size=(ends[-1], 2)), rng.normal(size=(ends[-1], 2))
    return Batches({"x": x}, action, index, obs_horizon=2, batch_size=1, seed=0, device=torch.device("cpu"))


TRAINING = make_batches(*range(9, 109, 9), seed=4)


def make_validation(log: Log, **options: Any) -> ValidationHook:
    """Judges on two short episodes, beside twelve to learn from."""
    noise = options.setdefault("training_noise", 1.0)
    return ValidationHook(
        log,
        make_batches(3, 15),
        training=TRAINING,
        watch=Watch(log, warmup_steps=0, stochastic=noise > 0),
        **{"normalizer": make_policy().normalizer, "every": 1, "samples": 3, "max_chunks": 99, "seed": 0} | options,
    )


def test_log_lines_are_means_over_their_window(tmp_path: Path, log: Log) -> None:
    hook, values = LogHook(log, every=3), [1.0, 2.0, 6.0, 10.0, 20.0, 33.0, 99.0]
    for step, value in enumerate(values, start=1):
        hook.after_step(make_state(step), {"loss": torch.tensor(value, dtype=torch.bfloat16), "norm": torch.tensor(2 * value)})
    assert log.bar.n == len(values)
    assert [(line["step"], line["loss"], line["norm"]) for line in lines(tmp_path)] == [(3, 3.0, 6.0), (6, 21.0, 42.0)]
    assert all(0 < line["steps_per_second"] < 1e9 for line in lines(tmp_path))


@pytest.mark.parametrize("samples", [1, 3])
def test_validation_agrees_with_plain_loops(log: Log, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = make_validation(log, samples=samples, max_chunks=6, seed=4)
    policy, batch = make_policy(), hook.batch
    assert len(batch.action) == 6
    assert not batch.valid.all()
    draws: list[Tensor] = []
    decode = policy.decode

    def kept(cond: Tensor, noise: Tensor) -> Tensor:
        draws.append(decode(cond, noise))
        torch.testing.assert_close(draws[-1], decode(policy.encode(batch.obs), noise))
        return draws[-1]

    monkeypatch.setattr(policy, "decode", kept)
    measured = hook.measure(policy)
    errors, spreads = [], []
    for chunk, step in torch.argwhere(batch.valid).tolist():
        points = [draw[chunk, step] for draw in draws]
        errors += [float((point - batch.action[chunk, step]).norm()) for point in points]
        spreads += [float((point - sum(points) / samples).norm()) for point in points]
    assert measured["val_action_error"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert measured["val_spread"] == pytest.approx(np.mean(spreads), rel=1e-5, abs=1e-6)
    assert (measured["val_spread"] > 0.01) == (samples > 1)
    assert hook.measure(policy) == pytest.approx(measured, abs=0, nan_ok=True)
    figures = sample_figures(torch.stack(draws[:samples], dim=1), batch.action, hook.similar)
    assert {key: measured[key] for key in figures} == pytest.approx(figures, nan_ok=True)


def test_what_was_learned_is_measured_with_the_noise_of_training(log: Log) -> None:
    policies = {scale: make_policy() for scale in (0.0, 0.5, 1.0)}
    for scale, policy in policies.items():
        policy.noise_scale = scale
    measured = {scale: make_validation(log).measure(policy) for scale, policy in policies.items()}
    assert measured[0.0]["val_spread"] < 1e-6 < 0.01 < measured[0.5]["val_spread"] < measured[1.0]["val_spread"]
    for scale in (0.0, 0.5):
        differing = {key for key, value in measured[1.0].items() if measured[scale][key] != pytest.approx(value, rel=1e-5)}
        assert differing == {"val_action_error", "val_spread"}
    silent = make_validation(log, training_noise=0.0).measure(policies[0.5])
    assert silent["val_spread"] == measured[0.5]["val_spread"]
    assert silent["val_spread_to_data"] < 1e-6


def test_similar_demonstrations_come_from_training_and_are_sought_in_network_units(log: Log) -> None:
    def neighbours(stretch: float) -> Tensor:
        normalizer, training = make_policy().normalizer, TRAINING.rows(torch.arange(len(TRAINING.steps)))
        normalizer.get_buffer("scale_x")[1] = stretch
        hook = make_validation(log, normalizer=normalizer, max_chunks=6)
        for obs, similar in zip(hook.batch.obs["x"], hook.similar, strict=True):
            nearest = (torch.tensor([1.0, stretch]) * (training.obs["x"] - obs)).square().sum(dim=(1, 2)).argmin()
            assert torch.equal(similar[0], training.action[nearest])
        return hook.similar

    assert neighbours(1.0).shape == (6, 8, 4, 2)
    assert not torch.equal(neighbours(1.0), neighbours(50.0))


class Scripted(Generator):
    """Draws chunks that deviate by `width` from zero, whatever is observed."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width, self.time = width, None

    def forward(self, noise: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        return self.width * noise


@pytest.mark.parametrize(
    ("width", "training_noise", "alarm"),
    [(0.01, 1.0, "collapsed"), (9.0, 1.0, "diverged"), (1.0, 1.0, None), (0.3, 1.0, None), (0.01, 0.0, None)],
)
def test_the_watch_hears_what_the_generator_does(
    tmp_path: Path, log: Log, width: float, training_noise: float, alarm: str | None
) -> None:
    hook, state = make_validation(log, every=400, samples=8, training_noise=training_noise), make_state()
    state.ema.module.generator = Scripted(width)
    for state.step in (400, 800, 1200, 1600):
        hook.after_step(state, {})
    assert [(line["step"], line["alarm"]) for line in lines(tmp_path) if "alarm" in line] == ([(1200, alarm)] if alarm else [])


def test_validation_judges_the_average_when_due(tmp_path: Path, log: Log) -> None:
    hook, state = make_validation(log, every=2, samples=2), make_state()
    assert len(hook.batch.action) == len(make_batches(3, 15).steps)
    state.policy.load_state_dict(make_policy(offset=1.0).state_dict())
    randomness = torch.get_rng_state()
    for state.step in (1, 2, 3, 4):
        hook.after_step(state, {})
    assert torch.equal(torch.get_rng_state(), randomness)
    expected = hook.measure(make_policy())
    assert lines(tmp_path) == [{"step": step, **expected} for step in (2, 4)]
    assert expected != hook.measure(state.policy)
    with pytest.raises(TypeError, match="needs a DriftingPolicy; got Linear"):
        hook.measure(nn.Linear(1, 1))


def make_saver(run_dir: Path, *, every: int = 2, last_step: int = 11, keep: int = 3) -> CheckpointHook:
    return CheckpointHook(run_dir, every=every, last_step=last_step, keep=keep, metadata=lambda: {"task": "toy"}, stats=STATS)


@pytest.mark.parametrize("keep", [1, 2, 3, 20])
def test_the_newest_policies_and_two_states_are_kept(tmp_path: Path, keep: int) -> None:
    hook, state, saved = make_saver(tmp_path, keep=keep), make_state(), []
    for state.step in range(1, 12):
        hook.after_step(state, {})
        saved += [state.step] if state.step % 2 == 0 or state.step == 11 else []
        kept = list_checkpoints(tmp_path)
        assert [read_config(path)["step"] for path in kept] == saved[-keep:]
        assert [(path / "state.pt").exists() for path in kept] == [False] * len(kept[:-2]) + [True] * len(kept[-2:])
    assert saved == [2, 4, 6, 8, 10, 11]
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        f"step_{step:08d}" for step in saved[-keep:]
    ]
    for path in kept:
        load_policy(path)


def test_a_checkpoint_holds_the_average_and_the_state(tmp_path: Path) -> None:
    state = make_state(step=7)
    state.policy.load_state_dict(make_policy(offset=1.0).state_dict())
    path = make_saver(tmp_path).save(state)
    averaged, raw = load_policy(path).state_dict(), load_state(path)
    assert raw["step"] == read_config(path)["step"] == 7
    assert read_config(path)["task"] == "toy"
    assert all(torch.equal(value, averaged[name]) for name, value in make_policy().state_dict().items())
    assert all(torch.equal(value, raw["policy"][name]) for name, value in state.policy.state_dict().items())


def test_only_a_drifting_policy_is_saved(tmp_path: Path) -> None:
    state = make_state()
    state.ema.module = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="holds a DriftingPolicy; got Linear"):
        make_saver(tmp_path).save(state)
    assert list(tmp_path.iterdir()) == []


def test_a_removed_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    path = make_saver(tmp_path).save(make_state(step=7))
    remove_checkpoint(path)
    assert list((tmp_path / "checkpoints").iterdir()) == []
