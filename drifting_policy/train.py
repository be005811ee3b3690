"""`python -m drifting_policy.train task=push_t`: trains a policy, saves checkpoints and ends with an evaluation."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch

from drifting_policy import cli
from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import list_checkpoints, load_policy, load_state, read_config, resumable
from drifting_policy.config import TrainConfig, arguments, options
from drifting_policy.curves import draw_curves, training_seconds
from drifting_policy.data.chunks import chunk_index, split_episodes
from drifting_policy.demonstrations import Demonstrations, load_demonstrations
from drifting_policy.models import Ema
from drifting_policy.normalize import Normalizer
from drifting_policy.objectives import OBJECTIVES, Objective
from drifting_policy.policy import DriftingPolicy
from drifting_policy.reporting.page import write_page
from drifting_policy.training.alarms import Watch
from drifting_policy.training.batches import Batches, mix
from drifting_policy.training.hooks import CheckpointHook, LogHook, ValidationHook
from drifting_policy.training.logging import Log, read_alarms
from drifting_policy.training.optim import learning_rate_factor, make_optimizer
from drifting_policy.training.trainer import Hook, NonFiniteLoss, Trainer, TrainState, trainable
from drifting_policy.types import CheckpointError, ConfigError
from drifting_policy.versions import versions

INTERRUPTED = 130


def run(config: TrainConfig) -> int:
    """Train as configured; 0 when finished, 130 when interrupted."""
    use_threads(config.threads)
    run_dir = Path(config.directory)
    device = choose_device(config.device)
    demonstrations = load_demonstrations(config.task, config.data_set)
    resume, finished, half = config.resume, True, config.trainer.steps // 2
    if config.trainer.rehearse_resume and half and not resume:
        resume, finished = True, fit(config, run_dir, demonstrations, device, until=half, resume=False)
    if not (finished and fit(config, run_dir, demonstrations, device, until=config.trainer.steps, resume=resume)):
        print(f"Interrupted, and saved. To go on, repeat the command with resume=true (run_dir={run_dir}).")
        return INTERRUPTED
    if config.trainer.eval_episodes:
        conclude(config, run_dir, demonstrations)
    return 0


def fit(
    config: TrainConfig, run_dir: Path, demonstrations: Demonstrations, device: torch.device, *, until: int, resume: bool
) -> bool:
    """Train until step `until`; whether it was reached."""
    trainer = config.trainer
    objective: Objective = _build_objective(config)
    state = build_state(config, demonstrations, objective, device)
    training, validation = build_batches(config, demonstrations, device)
    prepare_run(run_dir, resume=resume, overwrite=config.overwrite)  # when all else is known to be well
    if resume:
        _restore(state, resumable(run_dir), config)
    log = Log(run_dir, steps=trainer.steps, start=state.step, tensorboard=trainer.tensorboard)
    saver = CheckpointHook(
        run_dir,
        every=trainer.checkpoint_every,
        last_step=until,
        keep=trainer.keep_checkpoints,
        metadata=lambda: _metadata(config),
        stats=demonstrations.stats,
    )
    hooks: list[Hook] = [LogHook(log, every=trainer.log_every)]
    if validation is not None:
        hooks.append(build_validation(config, log, objective, training, validation, state.policy.normalizer))
    loop = Trainer(
        state,
        objective,
        training,
        seed=config.seed,
        schedule=partial(
            learning_rate_factor,
            steps=trainer.steps,
            warmup_steps=trainer.warmup_steps,
            final_factor=trainer.final_factor,
        ),
        learning_rate=trainer.learning_rate,
        clip_norm=trainer.clip_norm,
        bf16=trainer.bf16,
        observation_noise=trainer.observation_noise,
        hooks=[*hooks, saver],
    )
    try:
        with interruptible() as interrupted:
            loop.run(until=until, stop=interrupted.is_set)
            if state.step < until:
                saver.save(state)
    except NonFiniteLoss as error:
        raise _keep_batch(error, run_dir) from error
    finally:
        log.close()
    return state.step >= until


def build_state(config: TrainConfig, demonstrations: Demonstrations, objective: Objective, device: torch.device) -> TrainState:
    """Fresh weights, their average and the optimiser; the seed decides the weights."""

    def fresh() -> DriftingPolicy:
        return DriftingPolicy(
            config.task.spec,
            encoder=options(config.encoder),
            generator=options(config.generator) | ({"time": True} if objective.timed else {}),
            noise_scale=objective.noise_scale,
            sampler=objective.sampler,
            max_prefix=config.max_prefix,
        )

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mix(config.seed, 0))
        policy = fresh()
    modes = {key: array.normalize for key, array in config.task.observations.items()} | {"action": config.task.action.normalize}
    policy.normalizer = Normalizer.fit(demonstrations.stats, modes)
    policy = policy.to(device)
    ema = Ema(policy, fresh().to(device), power=config.trainer.ema_power, max_decay=config.trainer.ema_max)
    optimizer = make_optimizer(
        trainable(policy),
        learning_rate=config.trainer.learning_rate,
        betas=config.trainer.betas,
        weight_decay=config.trainer.weight_decay,
    )
    return TrainState(policy, ema, optimizer)


def build_batches(config: TrainConfig, demonstrations: Demonstrations, device: torch.device) -> tuple[Batches, Batches | None]:
    """Training and validation chunks, split by episode; the split depends on the data alone, not on the seed."""
    task, trainer = config.task, config.trainer
    index = chunk_index(
        demonstrations.episode_ends,
        obs_horizon=task.obs_horizon,
        pred_horizon=task.pred_horizon,
        exec_horizon=task.exec_horizon,
    )
    kept, held_out = split_episodes(len(demonstrations.episode_ends), validation_fraction=trainer.validation_fraction, seed=0)

    def batches(episodes: Any, batch_size: int) -> Batches:
        return Batches(
            demonstrations.observations,
            demonstrations.action,
            index.of_episodes(episodes),
            obs_horizon=task.obs_horizon,
            batch_size=batch_size,
            seed=config.seed,
            device=device,
        )

    return batches(kept, trainer.batch_size), batches(held_out, 1) if len(held_out) else None


def build_validation(
    config: TrainConfig, log: Log, objective: Objective, training: Batches, validation: Batches, normalizer: Normalizer
) -> ValidationHook:
    """The hook that judges the run on `validation`, beside what `training` shows, and warns through `log`."""
    trainer, noise = config.trainer, objective.training_noise
    return ValidationHook(
        log,
        validation,
        training=training,
        normalizer=normalizer,
        watch=Watch(log, warmup_steps=trainer.warmup_steps, stochastic=noise > 0),
        training_noise=noise,
        every=trainer.validate_every,
        samples=trainer.validation_samples,
        max_chunks=trainer.validation_chunks,
        seed=config.seed,
    )


def conclude(config: TrainConfig, run_dir: Path, demonstrations: Demonstrations) -> None:
    """Evaluate the newest checkpoint where the task has an environment, draw the curves, write report.json and report.html."""
    checkpoint, report = list_checkpoints(run_dir)[-1], _metadata(config)
    if config.task.env_id:
        report |= judge(config, run_dir, checkpoint, demonstrations)
    else:
        print(f"\nTask {config.task.name} names no environment (env_id): nothing was evaluated.")
    alarms = read_alarms(run_dir / "metrics.jsonl")
    report |= {"train_seconds": round(training_seconds(run_dir / "metrics.jsonl"), 1), "alarms": alarms}
    for alarm in alarms:
        print(f"  warning      {alarm['message']}")
    try:
        write_json(run_dir / "report.json", report)
        print(f"  curves       {draw_curves(run_dir)}")
    except ConfigError as error:
        print(f"  curves       not drawn. {error}")
    except OSError as error:
        raise ConfigError(
            f"The report in {run_dir} could not be written ({error}); free some space, then resume=true."
        ) from error
    print(f"  page         {write_page([run_dir])}")
    print(f"  policy       {checkpoint}")


def judge(config: TrainConfig, run_dir: Path, checkpoint: Path, demonstrations: Demonstrations) -> dict[str, Any]:
    """Evaluate and film `checkpoint` on held-out episodes, tell how it did, and give what a report says of it."""
    from drifting_policy.evaluation import evaluate_policy, print_scores
    from drifting_policy.rollout.workers import choose_workers

    out, policy = run_dir / "eval", load_policy(checkpoint)
    scores = evaluate_policy(
        policy,
        config.task,
        split="test",
        episodes=config.trainer.eval_episodes,
        num_envs=10,
        inference_batch=1,
        workers=choose_workers(None, episodes=config.trainer.eval_episodes, num_envs=10),
        videos=min(config.trainer.eval_videos, config.trainer.eval_episodes),
        out=out,
        about={
            "checkpoint": str(run_dir),
            "step": read_config(checkpoint)["step"],
            "objective": options(config.objective),
            "sampler": policy.recipe["sampler"],
        },
        demonstrations=demonstrations,
    )
    print_scores(scores, out)
    return {key: scores[key] for key in ("split", "n_episodes", "metrics", "step", "nfe")}


@contextmanager
def interruptible() -> Iterator[Event]:
    """An event that the first Ctrl-C sets, so that training stops between two steps; the second one is immediate."""
    event = Event()
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def use_threads(count: int) -> None:
    """Let PyTorch use `count` CPU threads; 0 leaves its choice.

    Raises:
        ConfigError: on a negative count.
    """
    if count < 0:
        raise ConfigError(f"threads must be a number of CPU threads, or 0 for PyTorch's choice; got {count}.")
    if count:
        torch.set_num_threads(count)


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the accelerator where there is one.

    Raises:
        ConfigError: where PyTorch cannot use it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        probe = torch.zeros((), device=name)
        probe.item()
        return probe.device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} cannot be used here ({str(error).splitlines()[0]}); try device=cpu.") from error


def _build_objective(config: TrainConfig) -> Objective:
    name = config.objective.name
    if name not in OBJECTIVES:
        raise ConfigError(f"Unknown objective '{name}'; choose one of {sorted(OBJECTIVES)}.")
    return OBJECTIVES[name](**arguments(config.objective))


def _metadata(config: TrainConfig) -> dict[str, Any]:
    return {
        "task": config.task.name,
        "objective": options(config.objective),
        "encoder": options(config.encoder),
        "generator": options(config.generator),
        "trainer": asdict(config.trainer),
        "data": config.data_set,
        "max_prefix": config.max_prefix,
        "seed": config.seed,
        "versions": versions(),
    }


def prepare_run(run_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the run directory; never mix two runs in one.

    Raises:
        ConfigError: where a run lies already, or the directory cannot be written.
        CheckpointError: where there is none to resume.
    """
    occupied = bool(list_checkpoints(run_dir)) or (run_dir / "metrics.jsonl").exists()
    if resume and not occupied:
        raise CheckpointError(f"There is no run in {run_dir} to resume; start it without resume=true.")
    if occupied and not (resume or overwrite):
        raise ConfigError(
            f"{run_dir} already holds a run. Continue it with resume=true, replace it with overwrite=true, "
            "or choose another run_dir."
        )
    try:
        if occupied and not resume:
            shutil.rmtree(run_dir)
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The run directory {run_dir} cannot be written ({error}); choose another run_dir.") from error


def _restore(state: TrainState, checkpoint: Path, config: TrainConfig) -> None:
    stored, ours = read_config(checkpoint), _metadata(config)
    # Runs from before the encoder was told apart, and from before there were prefixes and factors of the two forces.
    theirs = {"encoder": stored["policy"]["encoder"], "max_prefix": 0} | stored
    theirs["objective"] = {name: 1.0 for name in ("attraction", "repulsion") if name in ours["objective"]} | stored["objective"]
    ours |= {"spec": config.task.spec.to_dict()}
    for name in ("task", "spec", "objective", "encoder", "generator", "data", "max_prefix", "seed"):
        if theirs.get(name) != ours[name]:
            raise ConfigError(
                f"The run in {checkpoint} was started with {name}={theirs.get(name)}, not "
                f"{ours[name]}. Resume it with the same settings."
            )
    try:
        state.restore(load_state(checkpoint), load_policy(checkpoint).state_dict())
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"The training state in {checkpoint} does not fit these settings ({reason}).") from error


def _keep_batch(error: NonFiniteLoss, run_dir: Path) -> ConfigError:
    """Save the batch that broke the loss, and say what to do."""
    file = run_dir / f"non_finite_batch_step_{error.step}.pt"
    torch.save({"obs": dict(error.batch.obs), "action": error.batch.action}, file)
    return ConfigError(
        f"{error} The weights were not changed by it; its batch is in {file}. Lower trainer.learning_rate, check the data, "
        "and go on with resume=true."
    )


if __name__ == "__main__":
    cli.main("train", run)
