"""Every YAML composes, names exactly what its class accepts, and trains; a new file is tested by being there."""

import dataclasses
import inspect
import itertools
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from drifting_policy import config as schema
from drifting_policy import train
from drifting_policy.cli import compose
from drifting_policy.commands import COMMANDS
from drifting_policy.config import TaskConfig, TrainConfig
from drifting_policy.demonstrations import Demonstrations
from drifting_policy.evaluation import make_env
from drifting_policy.models import ENCODERS, GENERATORS
from drifting_policy.objectives import OBJECTIVES
from drifting_policy.training.optim import learning_rate_factor
from drifting_policy.training.trainer import Trainer
from drifting_policy.types import ConfigError

CONFIGS = Path(str(files("drifting_policy.configs")))
CHOICES = sorted(
    (p.parent.name, p.stem) for p in CONFIGS.glob("*/*.yaml") if not p.stem.endswith("_base") and p.parent.name != "imagenet"
)
REGISTRIES: Mapping[str, Mapping[str, Any]] = {"encoder": ENCODERS, "generator": GENERATORS, "objective": OBJECTIVES}
GIVEN = {"self", "observations", "obs_horizon", "sample_shape", "tokens", "embed_dim", "time"}  # by the program, not the YAML
ROOTS = {"train": schema.TrainConfig, **COMMANDS}
SMALL: Mapping[str, Any] = {"width": 16, "depth": 1, "heads": 2, "channels": [8, 16], "film_dim": 8, "blocks": [1]}


def named(group: str) -> list[str]:
    return [name for owner, name in CHOICES if owner == group]


def keys(file: Path) -> set[str]:
    return set(yaml.safe_load(file.read_text())) - {"defaults", "hydra"}


def names(node: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(node)}


def made_up(task: TaskConfig) -> Demonstrations:
    """Three episodes of noise in the shape that the task declares."""
    rng, spec = np.random.default_rng(0), task.spec
    observations = {
        key: rng.integers(0, 256, (60, *array.shape), dtype=np.uint8)
        if array.is_image
        else rng.normal(size=(60, *array.shape)).astype(np.float32)
        for key, array in spec.observations.items()
    }
    action = rng.normal(size=(60, *spec.action.shape)).astype(np.float32)
    return Demonstrations(observations, action, np.array([20, 40, 60]))


def small(choice: Any) -> Any:
    """The same choice with little to compute."""
    return dataclasses.replace(choice, **{key: value for key, value in SMALL.items() if key in names(choice)})


def test_the_files_are_found() -> None:
    assert {"task", "trainer", *REGISTRIES} == {group for group, _ in CHOICES}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_to_its_class(group: str, name: str) -> None:
    chosen = getattr(compose("train", [f"{group}={name}"]), group)
    if group in REGISTRIES:
        assert name == chosen.name or name.startswith(f"{chosen.name}_")
        assert type(chosen) in schema._CHOICES[group]
    assert keys(CONFIGS / group / f"{name}.yaml") <= names(chosen)


@pytest.mark.parametrize("root", ROOTS)
def test_files_and_classes_have_the_same_settings(root: str) -> None:
    config = compose(root, [])
    assert type(config) is ROOTS[root]
    groups = {group for group, _ in CHOICES}
    assert names(config) - groups == keys(CONFIGS / f"{root}.yaml") - groups
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(ROOTS)


@pytest.mark.parametrize("root", ROOTS)
def test_files_and_classes_have_the_same_defaults(root: str) -> None:
    written = yaml.safe_load((CONFIGS / f"{root}.yaml").read_text())
    default = dataclasses.asdict(ROOTS[root]())
    assert {key: default[key] for key in keys(CONFIGS / f"{root}.yaml")} == {
        key: value for key, value in written.items() if key not in ("defaults", "hydra")
    }


@pytest.mark.parametrize(
    ("group", "node"), [(group, node) for group, nodes in schema._CHOICES.items() for node in nodes], ids=lambda v: str(v)
)
def test_a_choice_has_exactly_the_arguments_of_what_it_names(group: str, node: type[schema.NamedConfig]) -> None:
    made = node()
    accepted = set(inspect.signature(REGISTRIES[group][made.name].__init__).parameters) - {"args", "kwargs"}
    given = GIVEN - {"embed_dim"} if group == "encoder" else GIVEN
    assert set(schema.arguments(made)) == accepted - given
    assert schema.options(made) == {"name": made.name, **schema.arguments(made)}


@pytest.mark.parametrize("group", REGISTRIES)
def test_registries_schemas_and_files_name_the_same_things(group: str) -> None:
    variants = {name for name in named(group) if name.rpartition("_")[0] in REGISTRIES[group]}
    assert {node().name for node in schema._CHOICES[group]} == set(REGISTRIES[group]) == set(named(group)) - variants


def every_pair() -> list[tuple[str, str, str]]:
    """Generators, objectives and tasks such that any two choices meet: each task with all of them, in turns."""
    generators, objectives = named("generator"), named("objective")
    count = max(len(generators), len(objectives))
    return [
        (generators[(i + k) % len(generators)], objectives[k % len(objectives)], task)
        for i, task in enumerate(named("task"))
        for k in range(count)
    ]


def test_every_pair_of_choices_is_among_the_combinations() -> None:
    groups = [named(group) for group in ("generator", "objective", "task")]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert {(each[i], each[j]) for each in every_pair()} == set(itertools.product(groups[i], groups[j]))


@pytest.mark.parametrize(("generator", "objective", "task"), every_pair())
def test_any_two_choices_take_a_step_together(generator: str, objective: str, task: str) -> None:
    config = compose("train", [f"generator={generator}", f"objective={objective}", f"task={task}", "trainer.batch_size=4"])
    config.generator, config.encoder = small(config.generator), small(config.encoder)
    data, device, goal = made_up(config.task), torch.device("cpu"), train._build_objective(config)
    if generator == "unet" and config.task.pred_horizon % 2:
        with pytest.raises(ConfigError, match="halves the prediction horizon"):
            train.build_state(config, data, goal, device)
        return
    state = train.build_state(config, data, goal, device)
    training, validation = train.build_batches(config, data, device)
    assert validation is not None
    before = {name: value.clone() for name, value in state.policy.named_parameters()}
    Trainer(state, goal, training, seed=0, schedule=lambda step: 1.0, learning_rate=1e-3, clip_norm=1.0).run(until=2)
    still = [name for name, value in state.policy.named_parameters() if torch.equal(value, before[name])]
    assert state.step == 2
    assert len(still) < len(before) / 2, still
    batch = training.batch(0)
    chunk = state.policy.act({key: value.numpy() for key, value in batch.obs.items()})
    assert chunk.shape == (4, *config.task.spec.sample_shape)
    assert np.isfinite(chunk).all()
    assert state.policy.recipe["sampler"] == goal.sampler
    assert isinstance(state.ema.module, train.DriftingPolicy)
    assert state.ema.module.recipe == state.policy.recipe


@pytest.mark.parametrize(
    ("group", "name"), [choice for choice in CHOICES if choice[0] in ("generator", "encoder") and choice[1] != "state"]
)
def test_networks_can_be_built_at_full_size(group: str, name: str) -> None:
    config = compose("train", [f"{group}={name}", f"task=push_t{'_image' if group == 'encoder' else ''}"])
    if name == "vit":  # which has no size of its own
        config.encoder = dataclasses.replace(config.encoder, architecture={"model_type": "dinov2"})
    with torch.device("meta"):
        policy = train.DriftingPolicy(
            config.task.spec, encoder=schema.options(config.encoder), generator=schema.options(config.generator)
        )
    assert 1e5 < sum(parameter.numel() for parameter in policy.parameters()) < 1e9


@pytest.mark.parametrize("task", named("task"))
def test_the_environment_of_a_task_keeps_its_contract(task: str) -> None:
    config = compose("train", [f"task={task}"]).task
    env = make_env(config)
    obs, _ = env.reset(seed=0)
    assert {key: obs[key].shape for key in config.observations} == {k: a.shape for k, a in config.spec.observations.items()}
    assert env.action_space.shape == config.spec.action.shape
    assert config.name == task
    assert {key: obs[key].dtype for key in config.observations} == {k: a.dtype for k, a in config.spec.observations.items()}
    assert config.data
    env.close()


@pytest.mark.parametrize("trainer", named("trainer"))
def test_the_schedule_of_every_trainer_is_a_schedule(trainer: str) -> None:
    chosen = compose("train", [f"trainer={trainer}"]).trainer
    shape = {"steps": chosen.steps, "warmup_steps": chosen.warmup_steps, "final_factor": chosen.final_factor}
    factors = [learning_rate_factor(step, **shape) for step in (0, chosen.warmup_steps, chosen.steps)]
    assert 0 < factors[2] < factors[0] < factors[1] == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.steps=0", "trainer.steps must be at least 1; got 0"),
        ("trainer.batch_size=-3", "trainer.batch_size must be at least 1; got -3"),
        ("trainer.log_every=0", "trainer.log_every must be at least 1"),
        ("trainer.validate_every=0", "trainer.validate_every must be at least 1"),
        ("trainer.checkpoint_every=0", "trainer.checkpoint_every must be at least 1"),
        ("trainer.keep_checkpoints=0", "trainer.keep_checkpoints must be at least 1"),
        ("trainer.validation_samples=0", "trainer.validation_samples must be at least 1"),
        ("trainer.observation_noise=-1", "trainer.observation_noise must be at least 0"),
        ("trainer.weight_decay=nan", "trainer.weight_decay must be at least 0; got nan"),
        ("trainer.learning_rate=0", "trainer.learning_rate must be a positive number; got 0"),
        ("trainer.learning_rate=inf", "trainer.learning_rate must be a positive number; got inf"),
        ("trainer.betas=[0.9]", r"trainer.betas must be two numbers in \[0, 1\)"),
        ("trainer.betas=[0.9,1.0]", r"trainer.betas must be two numbers in \[0, 1\)"),
        ("seed=-1", "seed must be at least 0; got -1"),
    ],
)
def test_numbers_out_of_range_are_named(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose("train", [override])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "float64"}, "must be float32, or uint8 for images; got float64"),
        ({"dtype": "uint8", "start": 3}, "taken whole"),
        ({"dtype": "uint8", "normalize": "standard"}, "by normalize=range"),
    ],
)
def test_impossible_arrays_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        schema.ArrayConfig(shape=[2], source="x", **settings)


def test_a_task_chooses_its_encoder_and_the_command_line_another() -> None:
    chosen = [compose("train", given).encoder for given in ([], ["task=push_t_image"], ["task=push_t_image", "encoder=state"])]
    assert [encoder.name for encoder in chosen] == ["state", "image", "state"]
    assert compose("train", ["encoder=image_small", "task=push_t_image", "encoder.keypoints=5"]).encoder.keypoints == 5
    for command in ("eval", "compare", "protocol", "replay"):
        assert compose(command, ["task=push_t_image"]).task.name == "push_t_image"


def test_a_run_is_named_after_its_choices() -> None:
    config: TrainConfig = compose("train", ["seed=3", "generator=unet", "objective=regression"])
    assert config.directory == "runs/push_t/bundled_regression_unet_seed3"
    assert dataclasses.replace(config, data="/tmp/some.zarr").directory == "runs/push_t/data_regression_unet_seed3"
    assert dataclasses.replace(config, run_dir="elsewhere").directory == "elsewhere"
