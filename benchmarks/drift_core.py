"""`python benchmarks/drift_core.py`: how much of a training step is the drifting core?

The step is all that the trainer does with one batch: noise, head, loss, backward, clipping, optimiser and average. The core
is the drifting loss of that step once more, alone: its grouping, its value, and its gradient down to the samples that the
head had just generated. The share is the median time of the core over the median time of the step; both take turns in one
run, and so do the groupings.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from timing import RESULTS, interleaved, random_walks, record, spread
from torch import Tensor

from drifting_policy import cli, train
from drifting_policy.config import arguments
from drifting_policy.drift import drift_loss
from drifting_policy.objectives.drift import GROUPINGS, DriftObjective
from drifting_policy.training.trainer import Trainer

BAR = 0.10  # largest share of the core
SAMPLES = 8
REPETITIONS = {"mlp": 30, "unet": 2}  # one step of the U-Net takes most of a minute on two cores
WARMUP = {"mlp": 5, "unet": 0}  # rounds beside the update that `prepare` makes


def prepare(generator: str, *, batch_size: int) -> dict[tuple[str, str], Callable[[], object]]:
    """For every grouping, ("step", grouping): one update; and ("core", grouping): the gradient "b g t d" of its loss alone.

    One update has been made and every core has been computed once, so that nothing runs for the first time.
    """
    overrides = [
        "objective=drift",
        f"objective.samples={SAMPLES}",
        f"generator={generator}",
        f"trainer.batch_size={batch_size}",
    ]
    config, device = cli.compose("train", overrides), torch.device("cpu")
    objectives = {name: DriftObjective(**(arguments(config.objective) | {"grouping": name})) for name in GROUPINGS}
    demonstrations = random_walks(config.task)
    state = train.build_state(config, demonstrations, objectives["chunk"], device)
    batches, _ = train.build_batches(config, demonstrations, device)
    trainer = Trainer(
        state,
        objectives["chunk"],
        batches,
        seed=config.seed,
        schedule=lambda step: 1.0,
        learning_rate=config.trainer.learning_rate,
        clip_norm=config.trainer.clip_norm,
        observation_noise=config.trainer.observation_noise,
    )
    batch = batches.batch(0)
    action = state.policy.normalizer.normalize("action", batch.action)
    generated: dict[str, Tensor] = {}
    state.policy.generator.register_forward_hook(lambda module, given, x: generated.update(x=x.detach()))

    def calls(grouping: str, objective: DriftObjective) -> dict[tuple[str, str], Callable[[], object]]:
        def step() -> None:
            trainer.objective = objective
            trainer._update(batch)  # what `run` repeats, without choosing the batch

        def core() -> Tensor:
            x, pattern = generated["x"].requires_grad_(), GROUPINGS[grouping]
            losses, _ = drift_loss(rearrange(x, pattern), rearrange(action[:, None], pattern), **objective.options)
            return torch.autograd.grad(losses.mean(), x)[0]

        return {("step", grouping): step, ("core", grouping): core}

    prepared = {name: call for grouping, objective in objectives.items() for name, call in calls(grouping, objective).items()}
    trainer._update(batch)
    for grouping in GROUPINGS:
        prepared["core", grouping]()
    return prepared


def measure(generator: str, *, batch_size: int, repetitions: int) -> list[dict[str, Any]]:
    """One row per grouping."""
    times = interleaved(prepare(generator, batch_size=batch_size), repetitions=repetitions, warmup=WARMUP[generator])
    rows = []
    for grouping in GROUPINGS:
        core, step = spread(times["core", grouping]), spread(times["step", grouping])
        row = {"generator": generator, "grouping": grouping, "share": core["p50"] / step["p50"]}
        row |= {"core_ms": core["p50"], "step_ms": step["p50"], "repetitions": repetitions}
        if repetitions < 5:
            row["note"] = f"Only {repetitions} repetitions, since a step takes {step['p50'] / 1000:.1f} s."
        rows.append(row | {"core_spread_ms": core, "step_spread_ms": step})
    return rows


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the record; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description="The share of the drifting core in a training step.")
    parser.add_argument("--generators", nargs="+", choices=list(REPETITIONS), default=list(REPETITIONS))
    parser.add_argument("--batch", type=int, default=256, help="observations per step")
    parser.add_argument("--repetitions", type=int, help=f"default: {REPETITIONS}")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's choice")
    parser.add_argument("--out", type=Path, default=RESULTS / "drift_core.json")
    given = parser.parse_args(argv)
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"{given.batch} observations, {SAMPLES} samples each, {torch.get_num_threads()} CPU threads, medians")
    print(f"{'generator':<10} {'grouping':<9} {'core':>9} {'step':>12} {'share':>8} {'n':>4}")
    rows = []
    for generator in given.generators:
        measured = measure(generator, batch_size=given.batch, repetitions=given.repetitions or REPETITIONS[generator])
        for row in measured:
            times = f"{row['core_ms']:6.2f} ms {row['step_ms']:9.1f} ms"
            print(
                f"{row['generator']:<10} {row['grouping']:<9} {times} {row['share']:8.2%} {row['repetitions']:>4}", flush=True
            )
        rows += measured
    missed = [
        f"with {row['generator']} and grouping {row['grouping']} the core is {row['share']:.1%} of a step, above {BAR:.0%}."
        for row in rows
        if row["share"] > BAR
    ]
    about = {"benchmark": "drift_core", "bar": f"share <= {BAR}", "batch_size": given.batch, "samples": SAMPLES}
    return record(given.out, rows=rows, missed=missed, **about)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
