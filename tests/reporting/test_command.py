"""The command of a page makes the settings of its checkpoint again."""

import shlex
from dataclasses import asdict
from typing import Any

import pytest

from drifting_policy.cli import compose
from drifting_policy.config import TrainConfig, options
from drifting_policy.reporting.command import evaluation_command, training_command
from drifting_policy.types import ConfigError


def stored(config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint of a training keeps of its settings."""
    told = {"task": config.task.name, "data": config.data, "seed": config.seed, "trainer": asdict(config.trainer)}
    groups = {"objective": options(config.objective), "generator": options(config.generator)}
    return told | groups | {"policy": {"encoder": options(config.encoder)}, "spec": config.task.spec.to_dict()}


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["task=push_t_state", "objective=regression", "generator=unet", "seed=7"],
        ["objective=diffusion", "generator=transformer", "objective.steps=5", "generator.depth=2", "encoder.embed_dim=8"],
        ["trainer.bf16=true", "trainer.betas=[0.8,0.99]", "trainer.learning_rate=3e-4"],
        ["objective.temperatures=[0.1]", "objective.grouping=step", "task.exec_horizon=4", "task.control_hz=20"],
        ["generator=unet", "generator.channels=[8,16]"],
        ["task=push_t_image", "encoder=image_small", "encoder.hue=0.1"],
        [r"data='/a folder/it\'s, [x]={1}\\'"],
        ["data='null'"],
        ["data='7'"],
        ["data=''"],
        ["data='${seed}'"],
    ],
)
def test_the_command_makes_the_settings_again(typed: list[str]) -> None:
    if "${seed}" in str(typed):
        settings = stored(compose("train", [])) | {"data": "a ${seed}"}
    else:
        settings = stored(compose("train", typed))
    words = shlex.split(training_command(settings))
    assert words[:3] == ["python", "-m", "drifting_policy.train"]
    assert stored(compose("train", words[3:])) == settings
    for place in range(7, len(words)):  # none is idle
        assert stored(compose("train", [*words[3:place], *words[place + 1 :]])) != settings


@pytest.mark.parametrize(
    "change", [{"task": "gone"}, {"objective": {}}, {"trainer": {"unheard_of": 1}}, {"policy": None}, {"seed": {}}]
)
def test_settings_of_another_version_are_an_error(change: dict[str, Any]) -> None:
    settings = stored(compose("train", [])) | change
    if change == {"seed": {}}:
        settings.pop("data")
    with pytest.raises(ConfigError):
        training_command(settings)


def test_an_evaluation_names_what_was_changed() -> None:
    about = {"checkpoint": "a run", "split": "validation", "latency_steps": 0, "sampler": {"name": "ddim", "steps": 5}}
    same = shlex.split(evaluation_command(about, n_episodes=7, trained=about["sampler"]))
    assert same == ["python", "-m", "drifting_policy.eval", "ckpt='a run'", "split=validation", "episodes=7"]
    other = shlex.split(evaluation_command(about | {"latency_steps": 3}, n_episodes=7, trained={"name": "ddim", "steps": 100}))
    assert other[6:] == ["latency_steps=3", "sampler.steps=5"]
    scaled = {"name": "ddim", "steps": 5, "noise_scale": 0.0}
    assert shlex.split(evaluation_command(about | {"sampler": scaled}, n_episodes=7, trained=about["sampler"])) == [
        *same,
        "sampler.noise_scale=0.0",
    ]
    composed = compose("eval", other[3:])
    assert (composed.ckpt, composed.latency_steps, composed.sampler.steps) == ("a run", 3, 5)
