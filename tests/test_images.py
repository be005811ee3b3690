"""Pictures from the data set to the rollout: they stay bytes, and everything that holds for numbers holds for them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drifting_policy import train
from drifting_policy.checkpoint import list_checkpoints, load_policy, load_state
from drifting_policy.chunking import ChunkExecutor
from drifting_policy.cli import compose
from drifting_policy.config import TaskConfig
from drifting_policy.data.replay_buffer import write_replay
from drifting_policy.data.thumbnails import thumbnails
from drifting_policy.demonstrations import Demonstrations, load_demonstrations
from drifting_policy.evaluation import env_factory, make_env
from drifting_policy.exhibits import nearest_chunk
from drifting_policy.policy import DriftingPolicy
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.types import DatasetError, ObservationError, Stats

SMALL = ("encoder=image_small", "encoder.width=8", "encoder.blocks=[1]", "encoder.keypoints=4", "encoder.brightness=0.2")
TINY = ("task=push_t_image", *SMALL, "trainer=debug", "trainer.rehearse_resume=false", "trainer.steps=6", "threads=1")
TINY += ("trainer.batch_size=4", "trainer.validate_every=3", "trainer.checkpoint_every=3", "trainer.observation_noise=0.02")
TINY += ("generator.width=16", "generator.depth=1", "trainer.eval_episodes=0", "device=cpu")


@pytest.fixture(scope="module")
def task() -> TaskConfig:
    return compose("train", ["task=push_t_image", "task.max_steps=18"]).task


@pytest.fixture(scope="module")
def data(task: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four short episodes of random pushes, with their pictures."""
    env, rng = make_env(task), np.random.default_rng(0)
    rows: dict[str, list[np.ndarray]] = {"img": [], "state": [], "action": []}
    for seed in range(4):
        obs, _ = env.reset(seed=seed)
        for _ in range(15):
            action = rng.uniform(100, 400, 2).astype(np.float32)
            for key, value in (("img", obs["image"]), ("state", obs["state"]), ("action", action)):
                rows[key].append(value)
            obs = env.step(action)[0]
    env.close()
    arrays = {key: np.stack(values) for key, values in rows.items()}
    return str(write_replay(tmp_path_factory.mktemp("data") / "pictures.zarr.zip", arrays, 15 * np.arange(1, 5)))


@pytest.fixture(scope="module")
def run_dir(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny training on pictures, from beginning to end."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert train.run(compose("train", [*TINY, f"data={data}", f"run_dir={path}"])) == 0
    return path


@pytest.fixture(scope="module")
def policy(run_dir: Path) -> DriftingPolicy:
    return load_policy(run_dir)


def seen(task: TaskConfig, data: str, *, steps: Any) -> dict[str, np.ndarray]:
    """Observations "b to ..." of the demonstrations at `steps`, each shown twice."""
    demonstrations = load_demonstrations(task, data)
    return {key: np.repeat(value[steps][:, None], 2, axis=1) for key, value in demonstrations.observations.items()}


def test_pictures_of_a_data_set_are_mapped_bytes(task: TaskConfig, data: str) -> None:
    demonstrations = load_demonstrations(task, data)
    image, position = demonstrations.observations["image"], demonstrations.observations["agent_pos"]
    assert isinstance(image, np.memmap)
    assert (image.dtype, image.shape, position.dtype) == (np.uint8, (60, 96, 96, 3), np.float32)
    obs, _ = make_env(task).reset(seed=2)
    assert np.array_equal(image[30], obs["image"])
    stats = demonstrations.stats["image"]
    assert (stats.min, stats.max, stats.mean.shape) == (0, 255, ())


def test_arrays_that_are_no_pictures_of_the_task_are_refused(task: TaskConfig, tmp_path: Path) -> None:
    numbers = {"state": np.zeros((4, 5), np.float32), "action": np.zeros((4, 2), np.float32)}
    for name, image in (("small", np.zeros((4, 48, 96, 3), np.uint8)), ("flat", np.zeros((4, 96 * 96 * 3), np.float32))):
        path = write_replay(tmp_path / f"{name}.zarr", numbers | {"img": image}, np.array([4]))
        with pytest.raises(DatasetError, match=r"data/img should be images of shape \(96, 96, 3\), uint8, for 'image'"):
            load_demonstrations(task, str(path))
    with pytest.raises(DatasetError, match=r"'bundled' is neither a data set of task push_t_image \(human\)"):
        load_demonstrations(task, "bundled")


def test_the_policy_sees_bytes_as_numbers_from_minus_one_to_one(policy: DriftingPolicy) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1)
    expected = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(pixels.shape).float()
    torch.testing.assert_close(policy.normalizer.normalize("image", pixels), expected, atol=1e-6, rtol=0)
    assert policy.normalizer.get_buffer("scale_image").shape == ()


def test_acting_takes_bytes_alone_and_depends_on_them(policy: DriftingPolicy, task: TaskConfig, data: str) -> None:
    obs = seen(task, data, steps=[0, 20])
    chunks = policy.act(obs)
    assert chunks.shape == (2, *policy.spec.sample_shape)
    darker = policy.act(obs | {"image": obs["image"] // 2})
    assert np.abs(darker - chunks).max() > 1e-4
    for wrong in (obs["image"].astype(np.float32), obs["image"] / 255, obs["image"].astype(np.int64)):
        with pytest.raises(ObservationError, match=f"'image' is an image and must be uint8.*got dtype {wrong.dtype}"):
            policy.act(obs | {"image": wrong})
        executor = ChunkExecutor(policy)
        with pytest.raises(ObservationError, match=f"must be uint8.*got dtype {wrong.dtype}"):
            executor.step({"image": wrong[:1, 0], "agent_pos": obs["agent_pos"][:1, 0]})
    with pytest.raises(ObservationError, match="'agent_pos' holds NaN"):
        policy.act(obs | {"agent_pos": obs["agent_pos"] * np.nan})


def test_a_resumed_training_ends_as_an_uninterrupted_one(run_dir: Path, data: str, tmp_path: Path) -> None:
    config = compose("train", [*TINY, f"data={data}", f"run_dir={tmp_path / 'run'}"])
    demonstrations, device = load_demonstrations(config.task, data), torch.device("cpu")
    train.fit(config, tmp_path / "run", demonstrations, device, until=2, resume=False)
    train.fit(config, tmp_path / "run", demonstrations, device, until=6, resume=True)
    ours, theirs = list_checkpoints(tmp_path / "run")[-1], list_checkpoints(run_dir)[-1]
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    states = [load_state(path)["policy"] for path in (ours, theirs)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_training_moves_the_network_and_leaves_small_files(run_dir: Path) -> None:
    first, last = (load_state(path)["policy"] for path in list_checkpoints(run_dir))
    assert not torch.equal(first["encoder.networks.image.0.stem.weight"], last["encoder.networks.image.0.stem.weight"])
    for checkpoint in list_checkpoints(run_dir):
        assert (checkpoint / "stats.json").stat().st_size < 2000
        assert set(json.loads((checkpoint / "stats.json").read_text())) == {"image", "agent_pos", "action"}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "val_action_error" in line]
    assert len(judged) == 2
    assert all(np.isfinite([line["val_action_error"], line["val_spread_to_data"]]).all() for line in judged)


@pytest.mark.parametrize("options", [{"num_envs": 3}, {"num_envs": 2, "workers": 2}], ids=str)
def test_an_evaluation_depends_on_the_seeds_alone(policy: DriftingPolicy, task: TaskConfig, options: Mapping[str, int]) -> None:
    settings: dict[str, Any] = {"max_steps": task.max_steps, "keep_trajectories": True}
    alone = evaluate(policy, env_factory(task), [5, 6, 7], **settings)
    other = evaluate(policy, env_factory(task), [7, 5, 6], **settings, **options)
    assert other.episodes == alone.episodes
    for seed in (5, 6, 7):
        assert alone.trajectories[seed]["image"].dtype == np.uint8
        for key, value in alone.trajectories[seed].items():
            assert np.array_equal(other.trajectories[seed][key], value)


def test_an_environment_that_gives_other_than_bytes_is_refused(policy: DriftingPolicy, task: TaskConfig) -> None:
    with pytest.raises(ObservationError, match=r"sees 'image', but the environment gives only"):
        evaluate(policy, lambda: make_env(compose("train", ["task=push_t"]).task), [0], max_steps=2)
    env = make_env(task)
    observe = env.unwrapped._image  # type: ignore[attr-defined]
    env.unwrapped._image = lambda: observe().astype(np.uint16)  # type: ignore[attr-defined]
    with pytest.raises(ObservationError, match=r"must be uint8.*got dtype uint16"):
        evaluate(policy, lambda: env, [0], max_steps=2)


def test_the_nearest_demonstration_is_found_by_its_picture(policy: DriftingPolicy, task: TaskConfig, data: str) -> None:
    demonstrations = load_demonstrations(task, data)
    for step in (3, 20, 59):
        obs = {key: value[step] for key, value in demonstrations.observations.items()}
        episode = slice(step // 15 * 15, step // 15 * 15 + 15)
        steps = np.clip(np.arange(16) + step - 1, episode.start, episode.stop - 1)
        assert np.array_equal(nearest_chunk(demonstrations, policy.spec, obs), demonstrations.action[steps])
    image = demonstrations.observations["image"]
    same = Demonstrations({"image": image, "agent_pos": np.zeros((60, 2), np.float32)}, demonstrations.action, np.array([60]))
    shown = {"image": np.asarray(image[41]), "agent_pos": np.zeros(2, np.float32)}  # told apart by pictures alone
    assert np.array_equal(nearest_chunk(same, policy.spec, shown)[1], demonstrations.action[41])


@pytest.mark.parametrize("shape", [(16, 24), (11, 17), (5, 8)])
def test_thumbnails_are_means_of_parts(shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, *shape, 2), dtype=np.uint8)
    small, (height, width) = thumbnails(images), (min(8, size) for size in shape)
    assert small.shape == (300, height, width, 2)
    rows, columns = ([i * size // parts for i in range(parts + 1)] for size, parts in zip(shape, (height, width), strict=True))
    for i in range(height):
        for j in range(width):
            part = images[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]].astype(np.float64)
            np.testing.assert_allclose(small[:, i, j], part.mean(axis=(1, 2)) / 127.5 - 1, atol=1e-6)


def test_fixed_statistics_are_those_of_all_bytes() -> None:
    fixed, measured = Stats.of_images(), Stats.of(np.array([[0], [255]]))
    assert [float(value) for value in vars(fixed).values()] == [float(value[0]) for value in vars(measured).values()]
