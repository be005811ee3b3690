"""The bundled demonstrations are what their card says, replay to success, and can be made again by the recipe."""

import hashlib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from omegaconf import OmegaConf

from drifting_policy import cli
from drifting_policy.checkpoint import load_policy
from drifting_policy.commands import RolloutConfig
from drifting_policy.data.download import array_sha256
from drifting_policy.data.replay_buffer import open_replay
from drifting_policy.datasets import push_t as recipe
from drifting_policy.demonstrations import bundled, load_demonstrations
from drifting_policy.eval import load_task
from drifting_policy.rollout.seeds import FIRST_SEED
from drifting_policy.types import ConfigError


def card_of(file: Path) -> Any:
    """The card beside a data set."""
    return OmegaConf.to_object(OmegaConf.load(file.with_name(file.name.removesuffix(".zarr.zip") + ".yaml")))


def replayed(episode: dict[str, np.ndarray]) -> tuple[float, bool, int]:
    """Largest distance (px) between replayed and stored positions, success, and steps of the open-loop replay."""
    env = gymnasium.make("drifting_policy.envs:drifting/PushT-v0")
    observation, _ = env.reset(seed=0, options={"state": episode["state"][0]})
    error, success, steps = 0.0, False, 0
    for state, action in zip(episode["state"], episode["action"], strict=True):
        error = max(error, float(np.abs(observation["state"][:4] - state[:4]).max()))
        observation, _, _, _, info = env.step(action)
        success, steps = success or info["success"], steps + 1
    env.close()
    return error, success, steps


def test_the_bundled_data_are_what_the_card_says() -> None:
    file = bundled("push_t.zarr.zip")
    card, buffer = card_of(file), open_replay(file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["file_sha256"]
    assert buffer.num_episodes == card["episodes"] >= 200
    assert {key: list(values.shape) for key, values in buffer.arrays.items()} == {
        key: array["shape"] for key, array in card["arrays"].items()
    }
    arrays = {**buffer.arrays, "episode_ends": buffer.episode_ends}
    assert {key: array_sha256(values) for key, values in arrays.items()} == card["array_sha256"]
    assert card["played"]["metrics"]["success"]["value"] * card["played"]["episodes"] == pytest.approx(card["episodes"])
    assert file.stat().st_size < 1_000_000


def test_the_task_knows_the_checksums_of_the_card() -> None:
    assert load_task("push_t").data["bundled"].sha256 == card_of(bundled("push_t.zarr.zip"))["array_sha256"]
    assert load_demonstrations(load_task("push_t"), "bundled").observations["keypoints"].shape[1:] == (9, 2)


@pytest.mark.parametrize("number", [0, 50, 100, 150, 199])
def test_the_bundled_data_replay_to_success(number: int) -> None:
    error, success, steps = replayed(open_replay(bundled("push_t.zarr.zip")).episode(number))
    assert error < 1.0
    assert success
    assert steps > 5


def test_the_recipe_keeps_the_successes_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "demos.zarr.zip"
    recipe.run(RolloutConfig(ckpt=str(bundled("push_t")), episodes=1, max_steps=300, most=8, out=str(out)))
    card, buffer = card_of(out), open_replay(out)
    assert buffer.num_episodes == card["episodes"] == round(8 * card["played"]["metrics"]["success"]["value"])
    assert 1 <= buffer.num_episodes < 8
    assert card["played"]["seeds"] == f"{FIRST_SEED['rollout']} to {FIRST_SEED['rollout'] + 7}"
    assert all(replayed(buffer.episode(number))[1] for number in range(buffer.num_episodes))
    assert f"episodes=1 max_steps=300 most=8 out={out}" in card["command"]
    recipe.run(
        RolloutConfig(ckpt=str(bundled("push_t")), episodes=1, max_steps=300, most=8, out=str(tmp_path / "again.zarr.zip"))
    )
    assert (tmp_path / "again.zarr.zip").read_bytes() == out.read_bytes()


def test_too_few_successes_leave_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "demos.zarr.zip"
    with pytest.raises(ConfigError, match="of 2 episodes succeeded; 3 were wanted"):
        recipe.run(RolloutConfig(ckpt=str(bundled("push_t")), episodes=3, most=2, out=str(out)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "words"), [([], "ckpt=RUN"), (["ckpt=bundled", "out=demos.zarr"], "must end in .zarr.zip")]
)
def test_mistakes_are_told(overrides: list[str], words: str) -> None:
    config = cli.compose("rollout", overrides)
    with pytest.raises(ConfigError, match=words):
        recipe.run(config)


def test_the_recorder_acts_as_its_policy_does() -> None:
    policy = load_policy(bundled("push_t"))
    rng = np.random.default_rng(0)
    shapes = {"keypoints": (3, 2, 9, 2), "agent_pos": (3, 2, 2), "state": (3, 2, 5)}
    obs = {key: rng.uniform(0, 512, shape).astype(np.float32) for key, shape in shapes.items()}
    recorder = recipe.StateRecorder(policy)
    assert set(recorder.spec.observations) == set(obs)
    seen = {key: obs[key] for key in policy.spec.observations}
    np.testing.assert_array_equal(recorder.act(obs), policy.act(seen))


def test_quantiles_are_numbers_for_a_card() -> None:
    assert recipe.quantiles([3.0, 1.0, 2.0]) == {"min": 1.0, "q25": 1.5, "median": 2.0, "q75": 2.5, "max": 3.0}
