"""Hooks of the Trainer: logging, validation, checkpoints."""

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from drifting_policy.checkpoint import checkpoint_path, drop_state, list_checkpoints, save_policy
from drifting_policy.normalize import Normalizer
from drifting_policy.policy import DriftingPolicy
from drifting_policy.training.alarms import Watch
from drifting_policy.training.batches import Batches, mix
from drifting_policy.training.diagnostics import data_figures, sample_figures, similar_rows
from drifting_policy.training.logging import Log
from drifting_policy.training.trainer import TrainState
from drifting_policy.types import Stats

ENCODED = 64  # observations with images that are encoded at once


@runtime_checkable
class Counted(Protocol):
    """A training state of any kind: it knows how many updates were made."""

    step: int


class LogHook:
    """Averages metrics over `every` steps and writes them to the log."""

    def __init__(self, log: Log, *, every: int) -> None:
        """Write to `log`."""
        self.log, self.every = log, every
        self.sums: dict[str, Tensor] = {}
        self.count, self.since = 0, time.perf_counter()

    def after_step(self, state: Counted, metrics: dict[str, Tensor]) -> None:
        """Add up, and write when a window is full."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + value.cpu().float()
        self.count += 1
        self.log.advance(state.step)
        if state.step % self.every == 0:
            means = {name: float(total) / self.count for name, total in self.sums.items()}
            now = time.perf_counter()
            self.log.write(state.step, {**means, "steps_per_second": self.count / (now - self.since)})
            self.sums, self.count, self.since = {}, 0, now


class ValidationHook:
    """Measures the averaged policy on held-out episodes every `every` steps."""

    def __init__(
        self,
        log: Log,
        batches: Batches,
        *,
        training: Batches,
        normalizer: Normalizer,
        watch: Watch,
        training_noise: float,
        every: int,
        samples: int,
        max_chunks: int,
        seed: int,
    ) -> None:
        """Judge at most `max_chunks` chunks of `batches`, drawing `samples` chunks for each observation.

        Similar demonstrations are searched here, once, among all of `training`, by the distance of normalised observations.
        """
        self.log, self.watch, self.training_noise = log, watch, training_noise
        self.every, self.samples, self.seed = every, samples, seed
        chunks = len(batches.steps)
        rows = torch.randperm(chunks, generator=torch.Generator().manual_seed(mix(seed, chunks)))[:max_chunks]
        self.batch = batches.rows(rows)
        images = batches.images.keys()
        queries = _flat_observations(normalizer, batches.searchable(rows), images)
        observations = _flat_observations(normalizer, training.searchable(torch.arange(len(training.steps))), images)
        action = training.action[training.steps]
        self.similar = action[similar_rows(queries, observations, training.episode)]
        self.data = data_figures(self.batch.action, self.similar, action.mean(dim=0))

    def after_step(self, state: TrainState, metrics: dict[str, Tensor]) -> None:
        """Write the figures when due, and let the watch hear them."""
        if state.step % self.every == 0:
            figures = self.measure(state.ema.module)
            self.log.write(state.step, figures)
            self.watch.hear(state.step, figures)

    def _encode(self, policy: DriftingPolicy) -> Tensor:
        """The tokens of the batch, which all samples share; images are encoded some at a time."""
        chunks = len(self.batch.action)
        block = ENCODED if any(array.is_image for array in policy.spec.observations.values()) else chunks
        return torch.cat(
            [
                policy.encode({key: value[start : start + block] for key, value in self.batch.obs.items()})
                for start in range(0, chunks, block)
            ]
        )

    @torch.inference_mode()
    def measure(self, policy: torch.nn.Module) -> dict[str, float]:
        """`val_action_error` and `val_spread` of the policy in use; `sample_figures` and `data_figures` of what it learned.

        The former are mean Euclidean distances per step between samples and demonstration, and between samples and their
        mean, in raw action units and without padded steps. The latter are taken with the noise of training, so that they tell
        what was learned however little of it a small `noise_scale` lets through. The noise is the same at every call, so that
        a curve shows the policy alone.
        """
        if not isinstance(policy, DriftingPolicy):
            raise TypeError(f"Validation needs a DriftingPolicy; got {type(policy).__name__}.")
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.samples, *self.batch.action.shape)
        noise = torch.randn(shape, generator=generator).to(self.batch.action)
        cond = self._encode(policy)
        chunks = learned = torch.stack([policy.decode(cond, draw * policy.noise_scale) for draw in noise])
        if policy.noise_scale != self.training_noise:
            learned = torch.stack([policy.decode(cond, draw * self.training_noise) for draw in noise])
        valid = self.batch.valid

        def mean_distance(difference: Tensor) -> float:
            return float(difference.norm(dim=-1)[:, valid].mean())

        return {
            "val_action_error": mean_distance(chunks - self.batch.action),
            "val_spread": mean_distance(chunks - chunks.mean(dim=0)),
            **sample_figures(learned.movedim(0, 1), self.batch.action, self.similar),
            **self.data,
        }


def _flat_observations(normalizer: Normalizer, obs: Mapping[str, Tensor], images: Collection[str]) -> Tensor:
    """Observations "n f" in network units; thumbnails of images are in them already."""
    units = {key: value if key in images else normalizer.normalize(key, value) for key, value in sorted(obs.items())}
    return torch.cat([value.flatten(1) for value in units.values()], dim=1)


class CheckpointHook:
    """Saves a checkpoint every `every` steps; keeps the newest `keep` policies and the newest two training states."""

    def __init__(
        self,
        run_dir: Path,
        *,
        every: int,
        last_step: int,
        keep: int,
        metadata: Callable[[], Mapping[str, Any]],
        stats: Mapping[str, Stats],
    ) -> None:
        """Save under `run_dir`; `metadata` is asked at every save."""
        self.run_dir, self.every, self.last_step, self.keep = run_dir, every, last_step, keep
        self.metadata, self.stats = metadata, stats

    def after_step(self, state: TrainState, metrics: dict[str, Tensor]) -> None:
        """Save when due, and at the last step."""
        if state.step % self.every == 0 or state.step == self.last_step:
            self.save(state)

    def save(self, state: TrainState) -> Path:
        """The checkpoint of this moment; afterwards older ones are thinned out."""
        averaged = state.ema.module
        if not isinstance(averaged, DriftingPolicy):
            raise TypeError(f"A checkpoint holds a DriftingPolicy; got {type(averaged).__name__}.")
        path = save_policy(
            checkpoint_path(self.run_dir, state.step),
            averaged,
            metadata={"step": state.step, **self.metadata()},
            stats=self.stats,
            state=state.to_dict(),
        )
        self._thin()
        return path

    def _thin(self) -> None:
        checkpoints = list_checkpoints(self.run_dir)
        for old in checkpoints[: -self.keep]:
            remove_checkpoint(old)
        for old in checkpoints[-self.keep : -2]:
            drop_state(old)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; renamed first, so that a reader never finds half of one."""
    doomed = path.with_name(f".{path.name}.doomed")
    path.rename(doomed)
    for file in doomed.iterdir():
        file.unlink()
    doomed.rmdir()
