"""`python -m drifting_policy.imagenet.train task=digits`: trains a generator by drifting, or the encoder it learns with."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from drifting_policy import cli
from drifting_policy.checkpoint import list_checkpoints, load_state, read_config, resumable
from drifting_policy.drift import drift
from drifting_policy.drift.loss import DriftOptions
from drifting_policy.imagenet.autoencoder import MaskedAutoencoder
from drifting_policy.imagenet.averages import Averages
from drifting_policy.imagenet.bank import MemoryBank
from drifting_policy.imagenet.checkpoints import load_encoder
from drifting_policy.imagenet.config import register
from drifting_policy.imagenet.convnext import ConvNextFeatures
from drifting_policy.imagenet.drifting import Counts, DriftGoal
from drifting_policy.imagenet.features import Extractor, combine
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.goal import Goal
from drifting_policy.imagenet.hooks import PictureHook, SaveHook
from drifting_policy.imagenet.images import ImageSet, open_images
from drifting_policy.imagenet.masking import MaskGoal
from drifting_policy.imagenet.schedule import learning_rate
from drifting_policy.imagenet.stream import ImageStream
from drifting_policy.imagenet.tasks import AutoencoderTask, FeaturesConfig, GeneratorTask, ImageTrainConfig
from drifting_policy.imagenet.trainer import ImageState, ImageTrainer, make_optimizer
from drifting_policy.train import INTERRUPTED, choose_device, interruptible, prepare_run, use_threads
from drifting_policy.training.batches import mix
from drifting_policy.training.hooks import LogHook
from drifting_policy.training.logging import Log
from drifting_policy.types import ConfigError
from drifting_policy.versions import versions

NO_ENCODER = "none"


def run(config: ImageTrainConfig) -> int:
    """Train as configured; 0 when finished, 130 when interrupted."""
    use_threads(config.threads)
    device, run_dir = choose_device(config.device), Path(config.directory)
    images = open_images(config.place, split="train", size=config.task.data.size)
    state = build_state(config, build_goal(config, images, device))
    prepare_run(run_dir, resume=config.resume, overwrite=config.overwrite)  # when all else is known to be well
    if config.resume:
        restore(state, resumable(run_dir), config)
    if not fit(config, state, run_dir):
        print(f"Interrupted, and saved. To go on, repeat the command with resume=true (run_dir={run_dir}).")
        return INTERRUPTED
    print(f"\n  network      {list_checkpoints(run_dir)[-1]}\n  pictures     {run_dir / 'pictures'}")
    return 0


def fit(config: ImageTrainConfig, state: ImageState, run_dir: Path) -> bool:
    """Train to the end; whether it was reached."""
    trainer, optimizer = config.task.trainer, config.task.optimizer
    log = Log(run_dir, steps=trainer.steps, start=state.step, tensorboard=trainer.tensorboard)
    saver = SaveHook(
        run_dir,
        every=trainer.checkpoint_every,
        last_step=trainer.steps,
        keep=trainer.keep_checkpoints,
        metadata=lambda: metadata(config),
    )
    pictures = PictureHook(run_dir / "pictures", every=trainer.picture_every, last_step=trainer.steps)
    loop = ImageTrainer(
        state,
        learning_rate=partial(
            learning_rate,
            peak=optimizer.learning_rate,
            warmup_steps=optimizer.warmup_steps,
            total_steps=trainer.steps,
            shape=optimizer.schedule,
        ),
        clip_norm=optimizer.clip_norm,
        hooks=[LogHook(log, every=trainer.log_every), pictures, saver],
    )
    try:
        with interruptible() as interrupted:
            loop.run(until=trainer.steps, stop=interrupted.is_set)
            if state.step < trainer.steps:
                saver.save(state)
    finally:
        log.close()
    return state.step >= trainer.steps


def build_state(config: ImageTrainConfig, goal: Goal) -> ImageState:
    """The state before the first step."""
    optimizer = config.task.optimizer
    learning_rate(0, peak=1.0, warmup_steps=0, total_steps=1, shape=optimizer.schedule)  # may refuse
    return ImageState(
        goal,
        Averages(goal.network, config.task.trainer.averages),
        make_optimizer(
            goal.network,
            learning_rate=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
        ),
    )


def build_goal(config: ImageTrainConfig, images: ImageSet, device: torch.device) -> Goal:
    """What the task minimises on `images`, with fresh weights on `device`, which the seed decides.

    Raises:
        ConfigError: settings that fit neither each other nor the images.
    """
    data = config.task.data
    stream = ImageStream(
        images, batch_size=data.batch_size, seed=config.seed, flips=data.flips, smallest_crop=data.smallest_crop
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mix(config.seed, 0))
        if isinstance(config.task, GeneratorTask):
            return drift_goal(config, config.task, stream, device)
        if isinstance(config.task, AutoencoderTask):
            return mask_goal(config, config.task, stream, device)
    raise ConfigError(f"Task {config.task.name} trains neither a generator nor an auto-encoder.")


def drift_goal(config: ImageTrainConfig, task: GeneratorTask, stream: ImageStream, device: torch.device) -> DriftGoal:
    """Drifting of the task's generator, with a bank that holds its first images."""
    images, bank = stream.images, task.bank
    generator = ImageGenerator(**asdict(task.generator))
    check_images(images, shape=generator.image_shape, classes=generator.classes)
    if task.generator.out_channels != task.generator.in_channels:
        raise ConfigError("A generator that learns by drifting makes images of the channels of its noise (task.generator).")
    guidance = asdict(task.guidance)
    shown = guidance.pop("shown")
    goal = DriftGoal(
        generator.to(device),
        build_extractor(task.encoder, task.features, images, device),
        stream,
        MemoryBank(
            classes=generator.classes,
            per_class=bank.per_class,
            overall=bank.overall,
            image_shape=images.image_shape,
            as_bytes=images.kind == "pixels",
        ),
        counts=Counts(**asdict(task.batch)),
        scales=guidance,
        options=field_options(asdict(task.drift)),
        feature_chunk=task.features.chunk,
        preview_scale=shown,
        seed=config.seed,
        device=device,
    )
    goal.fill(bank.prefill)
    return goal


def mask_goal(config: ImageTrainConfig, task: AutoencoderTask, stream: ImageStream, device: torch.device) -> MaskGoal:
    """Masked reconstruction, then classification, by the task's auto-encoder."""
    options, masking = asdict(task.autoencoder), task.masking
    check_images(stream.images, shape=(options["in_channels"], *stream.images.image_shape[1:]), classes=options["classes"])
    goal = MaskGoal(
        MaskedAutoencoder(**options).to(device),
        stream,
        shares=(masking.low, masking.high),
        ramp={"last_steps": masking.last_steps, "ramp_steps": masking.ramp_steps, "highest": masking.highest},
        total_steps=task.trainer.steps,
        seed=config.seed,
        device=device,
    )
    goal.picture(goal.network)  # refuses sizes that do not fit
    return goal


def build_extractor(place: str, features: FeaturesConfig, images: ImageSet, device: torch.device) -> Extractor | None:
    """The features of the frozen encoder at `place`, those of a ConvNeXt V2 beside it if wanted; None without either.

    Raises:
        ConfigError: no place, an encoder of other images, or features to be left out that it does not have.
    """
    if not place:
        raise ConfigError(
            "Say which encoder compares the images: task.encoder=RUN, or task.encoder=none to compare the images alone."
        )
    extractors: list[Extractor] = []
    if place != NO_ENCODER:
        encoder = load_encoder(place, device=device)
        chosen = partial(encoder.features, every_block=features.every_block, cells=features.cells)
        extractors.append(partial(without, chosen, frozenset(features.left_out)))
    if features.convnext is not None:
        extractors.append(ConvNextFeatures(weights=features.convnext).to(device).features)
    if not extractors:
        return None
    extractor = combine(*extractors)
    with torch.no_grad():
        names = extractor(images.batch([0])[0].to(device))
    if not names:
        raise ConfigError("task.features.left_out leaves no feature to compare.")
    return extractor


def without(extractor: Extractor, left_out: frozenset[str], images: Tensor) -> Mapping[str, Tensor]:
    """The features of `images` but those named.

    Raises:
        ConfigError: a name that is no feature.
    """
    found = extractor(images)
    if unknown := sorted(left_out - found.keys()):
        raise ConfigError(f"task.features.left_out names {unknown}, which are no features; there are {', '.join(found)}.")
    return {name: value for name, value in found.items() if name not in left_out}


def field_options(settings: Mapping[str, Any]) -> DriftOptions:
    """Options that the drifting field accepts.

    Raises:
        ConfigError: what it does not.
    """
    options = cast("DriftOptions", {**settings, "temperatures": tuple(settings["temperatures"])})
    try:  # the field knows its options best: let it refuse them now rather than in the first step
        drift(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), **options)
    except ValueError as error:
        raise ConfigError(f"task.drift: {error}") from error
    return options


def check_images(images: ImageSet, *, shape: tuple[int, ...], classes: int) -> None:
    """Refuse images that the network of the task was not made for.

    Raises:
        ConfigError: says what was expected and what came.
    """
    if images.image_shape != shape or len(images.class_names) != classes:
        raise ConfigError(
            f"The task is for images of shape {shape} in {classes} classes; the data set has {len(images.class_names)} classes "
            f"of {images.kind} of shape {images.image_shape}."
        )


def metadata(config: ImageTrainConfig) -> dict[str, Any]:
    """What a checkpoint tells of its training."""
    return {"task": asdict(config.task), "data": config.place, "seed": config.seed, "versions": versions()}


def restore(state: ImageState, checkpoint: Path, config: ImageTrainConfig) -> None:
    """Continue from `checkpoint`, which must be one of the same training; its `trainer` settings alone may have changed.

    Raises:
        ConfigError: names the first setting that differs.
        CheckpointError: the state does not fit.
    """
    theirs, ours = read_config(checkpoint), metadata(config)
    for values in (theirs, ours):
        values |= {f"task.{name}": value for name, value in values.pop("task").items() if name != "trainer"}
    for name, value in ours.items():
        if name != "versions" and theirs.get(name) != value:
            raise ConfigError(
                f"The run in {checkpoint} was started with {name}={theirs.get(name)}, not {value}. "
                "Resume it with the same settings."
            )
    state.restore(load_state(checkpoint))


if __name__ == "__main__":
    register()
    cli.main("imagenet.train", run)
