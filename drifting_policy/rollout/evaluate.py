"""Rolls a policy out over a list of episode seeds. An episode depends on its seed only, not on how the work was spread."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from drifting_policy.chunking import ChunkExecutor
from drifting_policy.rollout.episode import Episode, Record, Slot
from drifting_policy.rollout.worker import Job
from drifting_policy.rollout.workers import WorkerPool
from drifting_policy.seams import RECEDING, Execution
from drifting_policy.types import Policy, UserError


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Everything that an evaluation saw.

    `episodes` are sorted by seed. `plan_seconds` holds the duration of every call of the policy, warm-up included. `frames`
    maps the seeds that were filmed to their images: one after the reset and one after each step. `trajectories` maps seeds to
    arrays over the steps: the observation keys as they were before each action, and "action".
    """

    episodes: tuple[Episode, ...]
    plan_seconds: tuple[float, ...]
    frames: Mapping[int, list[np.ndarray]]
    trajectories: Mapping[int, Mapping[str, np.ndarray]]


def evaluate(
    policy: Policy,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    seeds: Sequence[int],
    *,
    num_envs: int = 1,
    max_steps: int,
    inference_batch: int = 1,
    noise_seed: int = 0,
    latency_steps: int = 0,
    execution: Execution = RECEDING,
    video_seeds: Collection[int] = (),
    keep_trajectories: bool = False,
    progress: bool = False,
    workers: int = 0,
    step_timeout: float = 60.0,
) -> EvalResult:
    """The outcome of one episode per seed; the seed sets the initial state and the noise of every plan.

    The seeds are a queue of work for `num_envs` environments, stepped in turn, or side by side by `workers` processes. The
    result, apart from the times, depends on neither number, nor on the order of the seeds, what is recorded, or who died.

    Args:
        policy: sees exactly the keys of its specification.
        make_env: makes an environment with dictionary observations, determined by `reset(seed=...)`; workers import it.
        seeds: distinct episode seeds in [0, 2^64).
        num_envs: environments side by side.
        max_steps: steps after which an episode is over, if it did not end by itself.
        inference_batch: rows of each call of the policy, see `ChunkExecutor`.
        noise_seed: another number below 2^32 gives the same initial states with other noise.
        latency_steps: control steps that pass between an observation and the first command that follows from it.
        execution: how a plan takes over from the one before, and how often.
        video_seeds: seeds whose episodes are filmed with `env.render()`.
        keep_trajectories: record what the policy saw and did.
        progress: show a progress bar on stderr.
        workers: processes that step the environments, at most one per environment; this one steps them if fewer than two.
        step_timeout: seconds of one simulator step after which a worker process counts as hanging, and is replaced.

    Raises:
        UserError: seeds that repeat, seeds or a noise seed out of range, a film of a seed that is not evaluated, counts below
            one, an environment that takes actions of another shape or keeps ending its worker.
        ConfigError: a latency that the policy's chunks are too short for, or a seam that it was not trained for.
        ObservationError: the environment's observations do not fit the policy.
    """
    queue = [int(seed) for seed in seeds]
    _check_request(queue, video_seeds, num_envs=num_envs, max_steps=max_steps, noise_seed=noise_seed)
    _check_workers(workers, step_timeout)
    slots = min(num_envs, len(queue))
    options = dataclasses.asdict(execution)
    executor = ChunkExecutor(policy, slots, inference_batch=inference_batch, latency_steps=latency_steps, **options)
    films, committed = frozenset(video_seeds), execution.committed(latency_steps)
    job = Job(make_env, executor.spec, max_steps=max_steps, film_seeds=films, keep=keep_trajectories, committed=committed)
    with tqdm(total=len(queue), desc="episodes", disable=not progress) as bar:
        if (processes := min(workers, slots)) > 1:
            with WorkerPool(job, executor, workers=processes, step_timeout=step_timeout) as pool:
                records = pool.play(queue, noise_seed=noise_seed, bar=bar)
        else:
            records = _play(job, executor, queue, bar, noise_seed)
    return _result(records, executor)


def _result(records: list[Record], executor: ChunkExecutor) -> EvalResult:
    records = sorted(records, key=lambda record: record.episode.seed)
    return EvalResult(
        episodes=tuple(record.episode for record in records),
        plan_seconds=tuple(executor.plan_seconds),
        frames={record.episode.seed: record.frames for record in records if record.frames},
        trajectories={record.episode.seed: record.trajectory for record in records if record.trajectory},
    )


def _play(job: Job, executor: ChunkExecutor, seeds: Sequence[int], bar: "tqdm[Any]", noise_seed: int) -> list[Record]:
    """The records of all seeds in the order in which their episodes ended, played in this process."""
    with contextlib.ExitStack() as stack:
        slots = []
        for _ in range(executor.num_envs):
            slots.append(job.slot())
            stack.callback(slots[-1].close)
        return _step_in_turn(slots, executor, seeds, bar, noise_seed)


def _step_in_turn(
    slots: Sequence[Slot], executor: ChunkExecutor, seeds: Sequence[int], bar: "tqdm[Any]", noise_seed: int
) -> list[Record]:
    waiting = list(reversed(seeds))
    records = []

    def begin(index: int) -> None:
        seed = waiting.pop()
        slots[index].begin(seed)
        executor.reset(np.arange(len(slots)) == index, seeds=[seed ^ (noise_seed << 32)])

    for index in range(len(slots)):
        begin(index)
    active = np.ones(len(slots), dtype=bool)
    while active.any():
        actions = executor.step({key: np.stack([slot.obs[key] for slot in slots]) for key in slots[0].obs}, active)
        for index in np.flatnonzero(active).tolist():
            if not slots[index].advance(actions[index]):
                continue
            records.append(slots[index].record())
            bar.update()
            if waiting:
                begin(index)
            else:
                active[index] = False
    return records


def _check_request(
    seeds: Sequence[int], video_seeds: Collection[int], *, num_envs: int, max_steps: int, noise_seed: int
) -> None:
    if not seeds:
        raise UserError("An evaluation needs at least one seed; got none.")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"Every seed may be evaluated once; got {len(seeds) - len(set(seeds))} repetitions.")
    if min(seeds) < 0 or max(seeds) >= 2**64:
        raise UserError(f"Seeds must lie in [0, 2^64); got {min(seeds)} .. {max(seeds)}.")
    if not set(video_seeds) <= set(seeds):
        raise UserError(f"video_seeds must be among the seeds; {sorted(set(video_seeds) - set(seeds))} are not.")
    if num_envs < 1 or max_steps < 1:
        raise UserError(f"num_envs and max_steps must be at least 1; got {num_envs} and {max_steps}.")
    if not 0 <= noise_seed < 2**32:
        raise UserError(f"noise_seed must lie in [0, 2^32); got {noise_seed}.")


def _check_workers(workers: int, step_timeout: float) -> None:
    if workers < 0 or not 0 < step_timeout < math.inf:
        raise UserError(f"workers must be at least 0 and step_timeout a positive number; got {workers} and {step_timeout}.")
