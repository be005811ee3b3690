"""Every task composes, and those of the release have its settings."""

import dataclasses
import inspect
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from drifting_policy import cli
from drifting_policy.drift.loss import DriftOptions
from drifting_policy.imagenet import tasks
from drifting_policy.imagenet.autoencoder import MaskedAutoencoder, classification_weight
from drifting_policy.imagenet.config import register
from drifting_policy.imagenet.drifting import Counts
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.guidance import draw_scales
from drifting_policy.imagenet.release import autoencoder_options, encoder_names, generator_names, generator_options
from drifting_policy.types import ConfigError

CONFIGS = Path(str(files("drifting_policy.configs"))) / "imagenet"
NAMES = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml") if not path.stem.endswith("_base"))
GENERATORS = {
    "ablation": "gen/latent_ablation",
    "latent_b": "gen/latent_sota_B",
    "latent_l": "gen/latent_sota_L",
    "pixel_b": "gen/pixel_sota_B",
    "pixel_l": "gen/pixel_sota_L",
}
ENCODERS = {
    "mae_latent_256": "mae/latent_ablation_256",
    "mae_latent_640": "mae/latent_640",
    "mae_pixel_640": "mae/pixel_640",
}


def compose(*overrides: str) -> Any:
    register()
    return cli.compose("imagenet.train", list(overrides))


@pytest.fixture(scope="module")
def release(shared: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((shared / "golden" / "release_shapes.json").read_text())
    return entries


@pytest.mark.parametrize("name", NAMES)
def test_every_task_composes(name: str) -> None:
    config = compose(f"task={name}", "seed=3")
    assert config.task.name == name
    assert type(config.task) in tasks.TASKS.values()
    assert config.directory == f"runs/imagenet/{name}_seed3"


def test_the_tasks_that_are_promised_are_there() -> None:
    assert set(NAMES) == {*GENERATORS, *ENCODERS, "digits", "cifar10", "mae_digits", "mae_cifar10"}


def test_the_file_and_the_class_of_the_command_have_the_same_settings() -> None:
    written = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    default = {name: value for name, value in dataclasses.asdict(tasks.ImageTrainConfig()).items() if name != "task"}
    assert {name: value for name, value in written.items() if name not in ("defaults", "hydra")} == default


@pytest.mark.parametrize(
    ("node", "function", "given"),
    [
        (tasks.GeneratorConfig, ImageGenerator.__init__, {"self"}),
        (tasks.AutoencoderConfig, MaskedAutoencoder.__init__, {"self"}),
        (tasks.BatchConfig, Counts.__init__, {"self"}),
        (tasks.GuidanceConfig, draw_scales, {"count", "generator"}),
    ],
)
def test_settings_are_the_arguments_of_what_they_are_for(node: Any, function: Any, given: set[str]) -> None:
    accepted = set(inspect.signature(function).parameters) - given
    assert {field.name for field in dataclasses.fields(node)} - {"shown"} == accepted


def test_settings_of_the_field_are_options_of_it() -> None:
    chosen = {field.name for field in dataclasses.fields(tasks.ImageDriftConfig)}
    # Weights follow from guidance; scale and force of a feature are shared, for that is the method.
    left = {"gen_weight", "pos_weight", "neg_weight", "scale", "force", "self_mask", "workspace", "groups"}
    assert chosen == set(DriftOptions.__annotations__) - left
    ramp = {field.name for field in dataclasses.fields(tasks.MaskingConfig)} - {"low", "high"}
    assert ramp == set(inspect.signature(classification_weight).parameters) - {"step", "total_steps"}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_of_the_release_has_its_settings(release: dict[str, Any], name: str) -> None:
    task, entry = compose(f"task={name}").task, release[GENERATORS[name]]
    train, optimizer, forward = entry["train"], entry["optimizer"], entry["train"]["forward_dict"]
    schedule = optimizer["lr_schedule"]
    ours, theirs = dataclasses.asdict(task.generator), generator_options(entry["model"])
    own = {"checkpointing": False, "noise_scale": 1.0}  # below; the release knows of no scale
    assert ours | {"checkpointing": False} == theirs | own
    assert task.generator.checkpointing == entry["model"].get("use_remat", False)
    assert task.optimizer == tasks.OptimizerConfig(
        learning_rate=schedule["learning_rate"],
        betas=[optimizer["adam_b1"], optimizer["adam_b2"]],
        weight_decay=optimizer["weight_decay"],
        warmup_steps=schedule["warmup_steps"],
        schedule={"const": "constant"}[schedule["lr_schedule"]],
        clip_norm=2.0,
    )
    assert task.batch == tasks.BatchConfig(
        labels=train["train_batch_size"],
        generated=forward["gen_per_label"],
        positives=train["pos_per_sample"],
        unconditional=train["neg_per_sample"],
    )
    assert task.bank == tasks.BankConfig(per_class=train["positive_bank_size"], overall=train["negative_bank_size"])
    assert task.data.batch_size == max(train["push_per_step"], train["train_batch_size"])
    scales = (task.guidance.low, task.guidance.high, task.guidance.power, task.guidance.plain_share)
    assert scales == (
        *(forward[f"cfg_{end}"] for end in ("min", "max")),
        forward["neg_cfg_pw"],
        forward.get("no_cfg_frac", 0.0),
    )
    assert task.guidance.shown in train["cfg_list"]
    assert task.drift == tasks.ImageDriftConfig(temperatures=train["loss_kwargs"]["R_list"])
    assert task.features.cells == train["activation_kwargs"]["patch_mean_size"]
    assert task.features.every_block == train["activation_kwargs"]["every_k_block"]
    assert (task.features.convnext is not None) == entry["feature"]["use_convnext"]
    assert task.encoder == entry["feature"]["mae_path"]
    assert task.trainer.steps == train["total_steps"]
    assert task.trainer.averages[0] == train["ema_decay"]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_of_the_release_has_its_size(release: dict[str, Any], name: str) -> None:
    with torch.device("meta"):
        generator = ImageGenerator(**dataclasses.asdict(compose(f"task={name}").task.generator))
    check_shapes(generator, generator_names(generator), release[GENERATORS[name]])


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_the_release_has_its_settings_and_size(release: dict[str, Any], name: str) -> None:
    task, entry = compose(f"task={name}").task, release[ENCODERS[name]]
    train, optimizer = entry["train"], entry["optimizer"]
    schedule = optimizer["lr_schedule"]
    options = dataclasses.asdict(task.autoencoder)
    assert {key: value for key, value in options.items() if key != "checkpointing"} == autoencoder_options(entry["model"])
    assert task.optimizer == tasks.OptimizerConfig(
        learning_rate=schedule["learning_rate"],
        betas=[optimizer["adam_b1"], optimizer["adam_b2"]],
        weight_decay=optimizer["weight_decay"],
        warmup_steps=schedule["warmup_steps"],
        clip_norm=2.0,
    )
    assert task.masking == tasks.MaskingConfig(
        low=train["forward_dict"]["mask_ratio_min"],
        high=train["forward_dict"]["mask_ratio_max"],
        last_steps=train["finetune_last_steps"],
        ramp_steps=train["warmup_finetune"],
        highest=train["finetune_cls"],
    )
    assert task.data.batch_size == entry["dataset"]["batch_size"]
    assert (task.trainer.steps, task.trainer.averages) == (train["total_steps"], [train["ema_decay"]])
    with torch.device("meta"):
        autoencoder = MaskedAutoencoder(**options)
    check_shapes(autoencoder, encoder_names(autoencoder), entry)


def check_shapes(network: torch.nn.Module, names: dict[str, str], entry: dict[str, Any]) -> None:
    """Every parameter of the release has its counterpart of the same size, and there are no others."""
    own = dict(network.named_parameters())
    sizes = {}
    for theirs, ours in names.items():
        parameter, _, table = ours.partition("/")
        shape = own[parameter].shape[1:] if table else own[parameter].shape
        sizes[theirs] = int(np.prod(shape))
        assert sorted(shape) == sorted(entry["params"][theirs]), theirs
    assert set(sizes) == set(entry["params"])
    assert sum(parameter.numel() for parameter in own.values()) == sum(sizes.values()) == entry["n_params"]


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(ENCODERS) - set(GENERATORS)))
def test_a_small_task_is_small(name: str) -> None:
    task = compose(f"task={name}").task
    if isinstance(task, tasks.GeneratorTask):
        network: torch.nn.Module = ImageGenerator(**dataclasses.asdict(task.generator))
        assert task.encoder == f"runs/imagenet/mae_{name}_seed0"
    else:
        network = MaskedAutoencoder(**dataclasses.asdict(task.autoencoder))
    assert sum(parameter.numel() for parameter in network.parameters()) < 5e6


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task=digit", "Unknown task 'digit'; choose one of ablation, cifar10, digits"),
        ("seed=-1", "seed must be at least 0; got -1"),
        ("task.data.batch_size=0", "task.data.batch_size must be at least 1; got 0"),
        ("task.optimizer.learning_rate=0", "task.optimizer.learning_rate must be a positive number"),
        ("task.optimizer.betas=[0.9]", r"task.optimizer.betas must be two numbers in \[0, 1\)"),
        ("task.optimizer.weight_decay=nan", "task.optimizer.weight_decay must be at least 0; got nan"),
        ("task.trainer.steps=0", "task.trainer.steps must be at least 1"),
        ("task.bank.per_class=0", "task.bank.per_class must be at least 1"),
        ("task.features.chunk=0", "task.features.chunk must be at least 1"),
        ("task.batch.lables=3", "Unknown setting 'task.batch.lables'"),
    ],
)
def test_settings_out_of_range_are_named(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose(override)


def test_a_task_without_images_asks_for_them() -> None:
    with pytest.raises(ConfigError, match="where the images of task latent_b are: data=PATH"):
        _ = compose("task=latent_b").place
    assert compose("task=latent_b", "data=somewhere").place == "somewhere"
    assert compose().place == "digits"
