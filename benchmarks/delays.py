"""What a delay costs, and what the seam between two plans makes of it: success over delay for every policy and seam.

Three policies are trained by the command that users type: drifting, the same with prefixes, and diffusion, drawn by DDIM in
ten steps. Each plays the same episodes under every delay and seam that it can do. Runs that are there are kept, interrupted
ones are resumed, and what a checkpoint played is kept beside it: the script can be stopped and started again.

`python benchmarks/delays.py` writes results/push_t/delays.json, one row for each policy, seam and delay, and delays.png. With
two idle cores it takes about an hour.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import ROOT, folder, one_observation, train
from matplotlib.figure import Figure
from suites import Arm, Suite
from timing import interleaved

from drifting_policy import cli
from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import list_checkpoints, load_policy
from drifting_policy.eval import load_task
from drifting_policy.evaluation import MOTIONS
from drifting_policy.rollout.statistics import cluster_bootstrap_mean
from drifting_policy.rows import DIGITS, digest
from drifting_policy.seams import Execution
from drifting_policy.trial import Trial, last_steps, play_trial
from drifting_policy.versions import versions

DELAYS = (0, 1, 2, 4, 8)
DATA = {"push_t": "human"}  # of other tasks: what a training takes by default
EXEC_HORIZON = 4  # of the 15 steps ahead: room for a delay of 8, and for a fade of 3 behind it
PREFIX = "drift, prefix"
DDIM = {"scheduler": "ddim", "steps": 10}
SEAMS = {"drift": ("snap", "fade"), PREFIX: ("prefix", "fade", "snap"), "diffusion, DDIM 10": ("snap", "fade")}
SHOWN = ("success", "max_score")


@dataclass(frozen=True)
class Case:
    """One row: an arm under a delay of so many control steps; `own` where that is what its planning takes."""

    arm: str
    seam: str
    delay: int
    own: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, time, play, and write rows and picture."""
    given = parse(argv)
    suite = make_suite(given)
    home = given.runs or Path(f"runs/benchmarks/{suite.task}/delays{'_unet' if given.unet else ''}")
    out = given.out or ROOT / f"results/{suite.task}/delays{'_unet' if given.unet else ''}.json"
    with ThreadPoolExecutor(given.jobs) as threads:
        pairs = [(arm, seed) for arm in suite.arms.values() for seed in range(suite.seeds)]
        jobs = [threads.submit(train, suite, arm, seed, folder(home, arm, seed)) for arm, seed in pairs]
        for job in jobs:
            job.result()
    planned = planning_times(suite, home)
    cases = choose_cases(planned, delays=given.delays, control_hz=load_task(suite.task).control_hz)
    runs = [(case, seed) for case in cases for seed in range(suite.seeds)]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as processes:
        call = partial(judge, suite=suite, home=home, exec_horizon=given.exec_horizon)
        played = list(processes.map(call, *zip(*runs, strict=True)))
    rows = []
    for place, case in enumerate(cases):
        trials = played[place * suite.seeds : (place + 1) * suite.seeds]
        rows.append(make_row(case, trials, planned[case.arm], exec_horizon=given.exec_horizon))
        print(tell(rows[-1]))
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, table in {"": rows, "_scores": scores(rows), "_seams": seams(rows)}.items():
        file = out.with_name(f"{out.stem}{name}.json")
        write_json(file, {"benchmark": "delays", "task": suite.task, "rows": table, "versions": versions()})
    print(f"written to {out} and {draw(rows, given.picture or out.with_suffix('.png'))}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="push_t", help="push_t, conveyor or any other that can be played")
    parser.add_argument("--data", help="a data set of the task, or a path; default: human for push_t")
    parser.add_argument(
        "--unet", action="store_true", help="the small U-Net as the action head instead of the MLP; takes hours"
    )
    parser.add_argument("--runs", type=Path, help="where the runs are kept; default: runs/benchmarks/TASK/delays")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds")
    parser.add_argument("--episodes", type=int, default=50, help="test episodes of each run, delay and seam")
    parser.add_argument("--delays", type=int, nargs="+", default=list(DELAYS), help="control steps from observation to command")
    parser.add_argument("--exec-horizon", type=int, default=EXEC_HORIZON, help="steps between two plans")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--out", type=Path, help="default: results/TASK/delays.json")
    parser.add_argument("--picture", type=Path, help="default: beside the rows")
    parser.add_argument(
        "overrides", nargs="*", help="settings of drifting_policy.train for all runs, such as trainer.steps=100"
    )
    return parser.parse_intermixed_args(argv)


def make_suite(given: argparse.Namespace) -> Suite:
    """The three arms; the prefix is as long as the longest delay."""
    arms = {
        "drift": Arm("drift", ("objective=drift",)),
        PREFIX: Arm("drift_prefix", ("objective=drift", f"max_prefix={max(1, *given.delays)}")),
        "diffusion, DDIM 10": Arm("diffusion", ("objective=diffusion", "objective.samples=4"), DDIM),
    }
    head = ("generator=unet", "generator.channels=[64,128,256]") if given.unet else ()
    overrides = (*head, "trainer.eval_episodes=1", *given.overrides)
    data = given.data or DATA.get(given.task) or cli.compose("train", [f"task={given.task}"]).data_set
    options: dict[str, Any] = {"seeds": given.seeds, "episodes": given.episodes, "checkpoints": 1, "inference_batch": 10}
    return Suite(given.task, data, arms, overrides, **options)


def planning_times(suite: Suite, home: Path) -> dict[str, dict[str, float]]:
    """Milliseconds that a plan for one observation takes on one thread; all arms take turns."""
    torch.set_num_threads(1)
    plans = {}
    for name, arm in suite.arms.items():
        policy = load_policy(list_checkpoints(folder(home, arm, 0))[-1])
        policy.resample(**arm.sampler)
        plans[name] = partial(policy.act, *one_observation(policy))
    times = interleaved(plans, repetitions=100, warmup=5)
    return {
        name: {"p50": float(np.percentile(taken, 50)), "p99": float(np.percentile(taken, 99))} for name, taken in times.items()
    }


def choose_cases(planned: Mapping[str, Mapping[str, float]], *, delays: Sequence[int], control_hz: float) -> list[Case]:
    """Every seam under every delay, and each arm that takes several steps under the delay that its p99 amounts to as well."""
    cases = [Case(arm, seam, delay) for arm, seams in SEAMS.items() for seam in seams for delay in delays]
    own = math.ceil(planned["diffusion, DDIM 10"]["p99"] / 1000 * control_hz)
    return [*cases, Case("diffusion, DDIM 10", "snap", own, own=True)]


def judge(case: Case, seed: int, *, suite: Suite, home: Path, exec_horizon: int) -> Trial:
    """The newest checkpoint of a run on the first test episodes."""
    torch.set_num_threads(1)
    arm = suite.arms[case.arm]
    run = folder(home, arm, seed)
    options: dict[str, Any] = {name: getattr(suite, name) for name in ("split", "episodes", "num_envs", "inference_batch")}
    execution = Execution(case.seam, exec_horizon=exec_horizon)
    steps = last_steps(run, suite.checkpoints)
    options |= {"sampler": arm.sampler, "latency_steps": case.delay, "execution": execution}
    return play_trial(run, load_task(suite.task), steps=steps, **options)


def make_row(case: Case, trials: Sequence[Trial], planned: Mapping[str, float], *, exec_horizon: int) -> dict[str, Any]:
    """The row of one case: scores with intervals over runs and episodes, and how rough the boundaries of its chunks were.

    `boundary_acceleration` and `boundary_jerk` are means over episodes of the largest in each, in raw action units.
    """
    config = trials[0].config
    recipe = {key: config[key] for key in ("objective", "generator", "trainer", "data")} | {"sampler": trials[0].sampler}
    row: dict[str, Any] = {"task": config["task"], "data": config["data"], "arm": case.arm, "seam": case.seam}
    row |= {"latency_steps": case.delay, "own_delay": case.own, "exec_horizon": exec_horizon, "nfe": trials[0].nfe}
    row |= {"max_prefix": config["max_prefix"], "plan_ms": {name: round(value, 3) for name, value in planned.items()}}
    for metric in SHOWN:
        interval = cluster_bootstrap_mean([trial.tables[metric] for trial in trials])
        ends = {metric: interval.value, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
        row |= {name: round(value, DIGITS) for name, value in ends.items()}
        row[f"{metric}_per_training_seed"] = [round(float(trial.tables[metric].mean()), DIGITS) for trial in trials]
    episodes = [episode for trial in trials for result in trial.results for episode in result.episodes]
    for name in MOTIONS:
        known = [value for episode in episodes if (value := getattr(episode, name)) is not None]
        row[name] = round(float(np.mean(known)), DIGITS) if known else None
    row |= {"split": trials[0].split, "n_episodes": len(trials[0].seeds), "n_training_seeds": len(trials)}
    return row | {"config_hash": digest(recipe), "seeds_hash": digest(list(trials[0].seeds))}


def tell(row: Mapping[str, Any]) -> str:
    """The row for people."""
    scores = " ".join(f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" for name in SHOWN)
    jerk = "-" if row["boundary_jerk"] is None else f"{row['boundary_jerk']:.4g}"
    delay = f"{row['latency_steps']} steps{' (its own)' if row['own_delay'] else ''}"
    return f"{row['arm']:<20} {row['seam']:<7} {delay:<20} {scores}   jerk {jerk}"


def scores(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Success and max score of every policy and seam, a column for each delay."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if not row["own_delay"]:
            line = table.setdefault((row["arm"], row["seam"]), {"policy": row["arm"], "seam": row["seam"]})
            line[f"delay_{row['latency_steps']}"] = f"{row['success']:.2f} / {row['max_score']:.2f}"
    return list(table.values())


def seams(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The policy that knows prefixes, under every delay: what the seam `prefix` makes of `snap` at the boundaries of chunks."""
    known = {(row["seam"], row["latency_steps"]): row for row in rows if row["arm"] == PREFIX}
    table = []
    for delay in sorted({delay for _, delay in known}):
        prefix, snap = known["prefix", delay], known["snap", delay]
        line: dict[str, Any] = {"delay": delay}
        for name in ("boundary_jerk", "boundary_acceleration"):
            line[name.removeprefix("boundary_")] = round(prefix[name] / snap[name], 2)
        for name, row in (("prefix", prefix), ("snap", snap)):
            line[f"success_{name}"] = f"{row['success']:.2f} [{row['success_low']:.2f}, {row['success_high']:.2f}]"
        table.append(line)
    return table


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """The picture: success, max score and jerk at the boundaries of chunks over the delay, a line for each arm and seam."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    panels = figure.subplots(1, 3)
    colors, styles = {name: f"C{place}" for place, name in enumerate(SEAMS)}, {"snap": ":", "fade": "--", "prefix": "-"}
    for axes, name in zip(panels, (*SHOWN, "boundary_jerk"), strict=True):
        for arm, seam in [(arm, seam) for arm, seams in SEAMS.items() for seam in seams]:
            line = [row for row in rows if (row["arm"], row["seam"], row["own_delay"]) == (arm, seam, False)]
            line = sorted((row for row in line if row[name] is not None), key=lambda row: row["latency_steps"])
            steps, values = [row["latency_steps"] for row in line], [row[name] for row in line]
            look: dict[str, Any] = {"color": colors[arm], "linestyle": styles[seam], "marker": ".", "label": f"{arm}: {seam}"}
            axes.plot(steps, values, **look)
            if name in SHOWN:
                ends = [[row[f"{name}_low"] for row in line], [row[f"{name}_high"] for row in line]]
                axes.fill_between(steps, *ends, color=colors[arm], alpha=0.06)
        axes.set(xlabel="delay, control steps", title=name.replace("_", " "))
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SEAMS) + 1, fontsize=8)
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    main()
