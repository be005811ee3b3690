"""A policy that was trained for it repeats committed commands exactly and continues them; any other is as it ever was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drifting_policy import cli, train
from drifting_policy.checkpoint import list_checkpoints, load_policy, read_config
from drifting_policy.config import arguments
from drifting_policy.data.chunks import chunk_index
from drifting_policy.demonstrations import bundled
from drifting_policy.models import Ema, PrefixEncoder
from drifting_policy.normalize import Normalizer
from drifting_policy.objectives import OBJECTIVES
from drifting_policy.policy import DriftingPolicy
from drifting_policy.training.batches import Batches
from drifting_policy.training.trainer import Trainer, TrainState, commit, trainable
from drifting_policy.types import ArraySpec, ConfigError, ObservationError, PolicySpec, Stats

SPEC = PolicySpec({"x": ArraySpec((3,))}, ArraySpec((2,)), 2, 8, 3, 10.0)
HEADS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32, "depth": 2},
    "unet": {"channels": [16, 32], "kernel": 5, "groups": 4, "film_dim": 16},
    "transformer": {"width": 32, "depth": 2, "heads": 2},
}
SAMPLERS = {"one_step": {"name": "one_step"}, "flow": {"name": "flow", "steps": 2}}


def policy(head: str = "mlp", sampler: str = "one_step", *, max_prefix: int = 4) -> DriftingPolicy:
    """Fresh weights, stirred so that everything matters; raw actions lie around 100."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        timed = {"time": True} if sampler == "flow" else {}
        generator = {"name": head, **HEADS[head], **timed}
        encoder = {"name": "state", "embed_dim": 16}
        result = DriftingPolicy(SPEC, encoder=encoder, generator=generator, sampler=SAMPLERS[sampler], max_prefix=max_prefix)
        for parameter in result.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    data = np.random.default_rng(0).uniform(-1, 1, size=(50, 3))
    stats = {"x": Stats.of(data), "action": Stats.of(100 + 5 * data[:, :2])}
    result.normalizer = Normalizer.fit(stats, {"x": "range", "action": "range"})
    return result.eval()


def question(rows: int = 3, k: int = 2) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Observations, noise and a prefix."""
    rng = np.random.default_rng(1)
    obs = {"x": rng.uniform(-1, 1, (rows, 2, 3)).astype(np.float32)}
    return obs, rng.normal(size=(rows, 8, 2)).astype(np.float32), rng.uniform(95, 105, (rows, k, 2))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_repeats_the_prefix_and_hears_it(head: str, sampler: str) -> None:
    acting = policy(head, sampler)
    obs, noise, prefix = question()
    chunk = acting.act(obs, noise=noise, prefix=prefix)
    np.testing.assert_array_equal(chunk[:, 1:3], prefix.astype(np.float32))
    other = acting.act(obs, noise=noise, prefix=prefix + np.array([0.0, 2.0]))
    assert np.abs(chunk[:, 3:] - other[:, 3:]).max() > 1e-3
    free = acting.act(obs, noise=noise)
    assert np.abs(chunk[:, 3:] - free[:, 3:]).max() > 1e-3
    np.testing.assert_array_equal(acting.act(obs, noise=noise, prefix=prefix[:, :0]), free)
    for row in range(3):
        alone = acting.act({"x": obs["x"][[row]]}, noise=noise[[row]], prefix=prefix[[row]])[0]
        np.testing.assert_allclose(alone, chunk[row], rtol=1e-4, atol=1e-3)
    copy = DriftingPolicy(SPEC, **json.loads(json.dumps(acting.recipe)))
    copy.load_state_dict(acting.state_dict(), strict=True)
    assert copy.max_prefix == 4
    np.testing.assert_allclose(copy.act(obs, noise=noise, prefix=prefix), chunk, rtol=1e-5)


def test_how_many_commands_are_committed_is_heard_and_what_follows_is_not() -> None:
    encoder = PrefixEncoder(length=4, action_dim=2, embed_dim=8)
    prefix, counts = torch.ones(3, 4, 2), torch.tensor([0, 2, 4])
    tokens = encoder(prefix, counts)
    assert tokens.shape == (3, 1, 8)
    hidden = prefix.clone()
    hidden[0, :], hidden[1, 2:] = torch.nan, 7.0
    torch.testing.assert_close(encoder(hidden, counts), tokens, rtol=0, atol=0)
    torch.testing.assert_close(encoder(prefix[:, :2], counts.clamp(max=2))[1], tokens[1])
    zeros = encoder(torch.zeros(3, 4, 2), torch.tensor([0, 1, 2]))  # a command of zeros is a command
    assert (zeros[0] - zeros[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="at most 4 commands; got 5"):
        encoder(torch.ones(3, 5, 2), counts)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (np.zeros((3, 5, 2)), r"continues at most 4 committed commands .*; got 5"),
        (np.zeros((2, 1, 2)), r"must have shape \(3, k, 2\).*got \(2, 1, 2\)"),
        (np.zeros((3, 1, 3)), r"must have shape \(3, k, 2\)"),
        (np.zeros((3, 2)), r"must have shape \(3, k, 2\)"),
        (np.full((3, 1, 2), np.nan), "NaN or infinity"),
        (np.full((3, 1, 2), 1e300), "NaN or infinity"),
        (np.full((3, 1, 2), "a"), "must be numeric"),
    ],
)
def test_a_prefix_is_checked_like_an_observation(prefix: np.ndarray, words: str) -> None:
    obs, noise, _ = question()
    with pytest.raises(ObservationError, match=words):
        policy().act(obs, noise=noise, prefix=prefix)


def test_a_policy_without_prefixes_is_what_it_was() -> None:
    plain, (obs, noise, prefix) = policy(max_prefix=0), question()
    assert plain.max_prefix == 0
    assert not [name for name in plain.state_dict() if "prefix" in name]
    older = {key: value for key, value in plain.recipe.items() if key != "max_prefix"}
    copy = DriftingPolicy(SPEC, **older)
    copy.load_state_dict(plain.state_dict(), strict=True)
    np.testing.assert_array_equal(copy.act(obs, noise=noise, prefix=prefix[:, :0]), plain.act(obs, noise=noise))
    with pytest.raises(ObservationError, match="at most 0 committed commands"):
        plain.act(obs, noise=noise, prefix=prefix)
    with pytest.raises(ValueError, match="trained without prefixes"):
        plain.encode({"x": torch.zeros(1, 2, 3)}, torch.zeros(1, 1, 2))
    generator = torch.Generator().manual_seed(5)
    before, tokens = generator.get_state(), torch.ones(4, 2, 16)
    assert commit(plain, tokens, torch.zeros(4, 8, 2), generator) is tokens
    assert torch.equal(generator.get_state(), before)
    assert load_policy(bundled("push_t")).max_prefix == 0  # stored before there were prefixes
    assert "max_prefix" not in read_config(bundled("push_t"))["policy"]


def test_a_prefix_as_long_as_the_plan_is_refused() -> None:
    assert policy(max_prefix=6).max_prefix == 6
    for length in (7, -1):
        with pytest.raises(ConfigError, match=rf"max_prefix must lie between 0 and 6, .*; got {length}\."):
            policy(max_prefix=length)


class Listener(nn.Module):
    """Stands in for the encoder of prefixes, and remembers what it was given."""

    length = 4

    def forward(self, prefix: Tensor, counts: Tensor) -> Tensor:
        self.prefix, self.counts = prefix, counts
        return prefix.new_zeros(len(prefix), 1, 16)


def test_training_commits_demonstrated_commands_from_now_on() -> None:
    trained, listener = policy(), Listener()
    trained.prefix_encoder = listener  # type: ignore[assignment]
    action = torch.arange(8.0)[None, :, None].expand(5000, 8, 2)
    cond = commit(trained, torch.ones(5000, 2, 16), action, torch.Generator().manual_seed(0))
    assert cond.shape == (5000, 3, 16)
    assert listener.prefix[0, :, 0].tolist() == [1, 2, 3, 4]  # of two observed steps the second is now
    shares = torch.bincount(listener.counts, minlength=5) / 5000
    assert (shares - 0.2).abs().max() < 0.03
    counts = listener.counts
    commit(trained, torch.ones(5000, 2, 16), action, torch.Generator().manual_seed(0))
    assert torch.equal(listener.counts, counts)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_with_prefixes(push_t_data: str, tmp_path: Path, objective: str) -> None:
    tiny = ["trainer=debug", "generator.width=32", "generator.depth=1", "trainer.eval_episodes=0", f"data={push_t_data}"]
    tiny += ["trainer.steps=4", "trainer.checkpoint_every=2", "trainer.validate_every=4", "max_prefix=3"]
    runs = [tmp_path / name for name in ("whole", "in two goes")]
    for run, rehearsed in zip(runs, ("false", "true"), strict=True):
        more = [f"objective={objective}", f"run_dir={run}", f"trainer.rehearse_resume={rehearsed}"]
        assert train.run(cli.compose("train", [*tiny, *more])) == 0
    whole, resumed = (list_checkpoints(run)[-1] for run in runs)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    trained, config = load_policy(whole), read_config(whole)
    assert (trained.max_prefix, config["policy"]["max_prefix"], config["max_prefix"]) == (3, 3, 3)
    fresh, moved = (load_policy(list_checkpoints(runs[0])[n]).state_dict() for n in (0, -1))
    assert any(not torch.equal(value, moved[name]) for name, value in fresh.items() if name.startswith("prefix_encoder"))
    with pytest.raises(ConfigError, match="was started with max_prefix=3, not 0"):
        train.run(cli.compose("train", [*tiny, f"objective={objective}", f"run_dir={runs[0]}", "max_prefix=0", "resume=true"]))


def test_where_a_run_is_kept_tells_of_prefixes() -> None:
    names = [cli.compose("train", [f"max_prefix={k}"]).directory for k in (0, 4)]
    assert names == [f"runs/push_t/bundled_drift_mlp{prefix}_seed0" for prefix in ("", "_prefix4")]


def train_bimodal(*, max_prefix: int) -> DriftingPolicy:
    """One observation, two ways: a ramp up or a ramp down, of six steps."""
    rng, episodes, steps = np.random.default_rng(0), 200, 6
    sides = rng.permutation(np.repeat([-1.0, 1.0], episodes // 2))
    action = (sides[:, None] * np.linspace(0.2, 1, steps) + 0.02 * rng.normal(size=(episodes, steps))).reshape(-1, 1)
    spec = PolicySpec({"x": ArraySpec((1,))}, ArraySpec((1,)), 1, steps, 1, 10.0)

    def fresh() -> DriftingPolicy:
        head = {"name": "mlp", "width": 64, "depth": 2}
        return DriftingPolicy(spec, encoder={"name": "state", "embed_dim": 16}, generator=head, max_prefix=max_prefix)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner, copy = fresh(), fresh()
    observed = np.zeros((len(action), 1), np.float32)
    stats = {"x": Stats.of(np.array([[-1.0], [1.0]])), "action": Stats.of(action)}
    learner.normalizer = Normalizer.fit(stats, {"x": "range", "action": "range"})
    index = chunk_index(steps * np.arange(1, episodes + 1), obs_horizon=1, pred_horizon=steps, exec_horizon=1)
    options = {"obs_horizon": 1, "batch_size": 64, "seed": 0, "device": torch.device("cpu")}
    batches = Batches({"x": observed}, action.astype(np.float32), index, **options)
    objective = OBJECTIVES["drift"](**arguments(cli.compose("train", ["objective=drift"]).objective))
    optimizer = torch.optim.AdamW(trainable(learner), lr=2e-3)
    state = TrainState(learner, Ema(learner, copy, power=0.75, max_decay=0.99), optimizer)
    Trainer(state, objective, batches, seed=0, schedule=lambda step: 1.0, learning_rate=2e-3, clip_norm=1.0).run(until=1000)
    return learner.eval()


def test_a_prefix_keeps_a_bimodal_policy_on_its_side() -> None:
    noise = np.random.default_rng(1).normal(size=(200, 6, 1)).astype(np.float32)
    obs = {"x": np.zeros((200, 1, 1), np.float32)}
    trained = train_bimodal(max_prefix=3)
    trained.noise_scale = 1.0  # as in training
    share = (trained.act(obs, noise=noise)[:, -1, 0] > 0).mean()
    assert 0.2 < share < 0.8, "without a prefix both ways are taken"
    for side, k in ((1, 1), (1, 3), (-1, 1), (-1, 3)):
        ramp = side * np.linspace(0.2, 1, 6)[None, :, None]
        chunks = trained.act(obs, noise=noise, prefix=np.repeat(ramp[:, :k], 200, axis=0))
        assert (np.sign(chunks[:, -1, 0]) == side).mean() > 0.95
        jump = np.abs(chunks[:, k] - chunks[:, k - 1]).mean()
        assert jump < 0.16 + 0.15, "the step behind the prefix is nearly the ramp's own, 0.16"
