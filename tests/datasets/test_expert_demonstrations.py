"""Demonstrations of the scripted experts: they succeed, in two styles, and the files that they fill replay to success."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from drifting_policy.data.download import array_sha256
from drifting_policy.data.robomimic import open_robomimic, read_env_args, read_model_files
from drifting_policy.datasets import experts
from drifting_policy.datasets.recorder import AFTER, record
from drifting_policy.envs.robomimic import RobomimicEnv
from drifting_policy.envs.robomimic_tasks import task_named, world_settings
from drifting_policy.envs.robomimic_world import World

SEEDS = (11, 12)


def episodes(task: str, ways: Sequence[tuple[int, int]], *, start: int) -> list[dict[str, Any] | None]:
    """Episodes from one initial state, one for each pair of the seed of the way and the style."""
    world = World(task_named(task), world_settings(task, absolute=False))
    try:
        return [
            record(
                world,
                task_named(task),
                experts.EXPERTS[task].expert(np.random.default_rng(seed), style).act,
                np.random.default_rng(start),
                max_steps=experts.MAX_STEPS[task],
            )
            for seed, style in ways
        ]
    finally:
        world.close()


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_both_styles_succeed_and_differ(task: str) -> None:
    played = episodes(task, [(SEEDS[0], 0), (SEEDS[0], 1)], start=SEEDS[1])
    first, other = (episode for episode in played if episode is not None)
    for episode in (first, other):
        assert np.abs(episode["actions"]).max() <= 1
        assert np.flatnonzero(episode["rewards"])[0] == len(episode["rewards"]) - AFTER - 1
        assert episode["dones"].tolist() == [0] * (len(episode["dones"]) - 1) + [1]
        assert episode["actions_abs"].shape == (len(episode["actions"]), 10)
        np.testing.assert_array_equal(episode["obs"]["object"][1:], episode["next_obs"]["object"][:-1])
    np.testing.assert_array_equal(first["states"][0], other["states"][0])
    steps = min(len(first["actions"]), len(other["actions"]))
    assert np.abs(first["actions"][:steps, 5] - other["actions"][:steps, 5]).max() > 0.2


def test_an_episode_is_a_function_of_its_seed() -> None:
    first, again = (episode for episode in episodes("lift", [(SEEDS[0], 0)] * 2, start=SEEDS[1]) if episode is not None)
    for key in ("actions", "actions_abs", "states"):
        np.testing.assert_array_equal(first[key], again[key])


def test_an_expert_that_does_nothing_fails() -> None:
    world = World(task_named("lift"), world_settings("lift", absolute=False))
    try:
        assert record(world, task_named("lift"), lambda seen: np.zeros(7), np.random.default_rng(0), max_steps=5) is None
    finally:
        world.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations of Lift, by the command."""
    out = tmp_path_factory.mktemp("made") / "lift_scripted.hdf5"
    assert experts.main(["--task", "lift", "--episodes", "3", "--seed", "4", "--out", str(out)]) == 0
    return out


def test_the_card_tells_what_the_file_holds(made: Path) -> None:
    card: Any = OmegaConf.to_object(OmegaConf.load(made.with_suffix(".yaml")))
    buffer = open_robomimic(made)
    assert card["episodes"] == buffer.num_episodes == 3
    assert card["array_sha256"] == {
        key: array_sha256(values) for key, values in {**buffer.arrays, "episode_ends": buffer.episode_ends}.items()
    }
    assert sum(card["styles"].values()) == 3
    assert card["command"].endswith(str(made))
    assert card["played"]["episodes"] - card["played"]["failures"] == 3
    assert open_robomimic(made, filter_key="train").num_episodes == 3


@pytest.mark.parametrize("action", ["delta", "absolute"])
def test_the_file_replays_to_success(made: Path, action: str) -> None:
    buffer = open_robomimic(made)
    env = RobomimicEnv(env_args=read_env_args(made), action=action)
    try:
        for number, model in enumerate(read_model_files(made)):
            episode = buffer.episode(number)
            env.reset(options={"states": episode["states"][0], "model": model})
            done = False
            for values in episode["actions" if action == "delta" else "actions_abs"]:
                done = env.step(values)[4]["success"] or done
            assert done
    finally:
        env.close()


@pytest.mark.parametrize(
    "wrong", [["--episodes", "0"], ["--seed", "-1"], ["--workers", "0"], ["--out", "lift.zip"]], ids=lambda wrong: wrong[0]
)
def test_mistakes_are_one_sentence(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert experts.main(["--task", "lift", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err
