"""What makes the seam between two plans of a policy with prefixes smoother still.

Under a delay of d steps a policy that knows prefixes continues d commands of the plan before; with `commit_steps=1` it
continues d + 1. Two commands tell a velocity, one does not. `prefix_fade` blends the plans after the prefix. The policy with
prefixes of `delays.py` is trained, or found among its runs, and plays the same episodes with every one of these seams, and with
`snap`; with fresh noise for every plan, and with that of the first plan of the episode.

`python benchmarks/commit.py` writes results/push_t/commit.json, one row for each delay, noise and seam. `--seams`, `--noises`
and `--delays` choose among them.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from baselines import ROOT, folder, train
from delays import DELAYS, EXEC_HORIZON, PREFIX, Case, make_row, make_suite, parse
from suites import Suite

from drifting_policy.atomic import write_json
from drifting_policy.eval import load_task
from drifting_policy.seams import Execution
from drifting_policy.trial import Trial, last_steps, play_trial
from drifting_policy.versions import versions

SHORT = (0, 1, 2)  # delays under which few commands are committed
SNAP = "snap"
SEAMS = {
    SNAP: (SNAP, 0),
    **{f"prefix + {n}" if n else "prefix": ("prefix", n) for n in (0, 1, 2)},
    "prefix_fade": ("prefix_fade", 0),
}
NOISES = {"fresh": False, "held": True}  # is it held?
Seam = tuple[str, int, int, bool]  # how plans meet, delay, commands that are committed beyond it, whether noise is held


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, play, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/push_t/delays"), help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds")
    parser.add_argument("--episodes", type=int, default=50, help="test episodes of each run")
    parser.add_argument("--delays", type=int, nargs="+", choices=DELAYS, default=list(SHORT), help="control steps")
    parser.add_argument("--seams", nargs="+", choices=list(SEAMS), default=list(SEAMS), help=f"{SNAP} is always among them")
    parser.add_argument("--noises", nargs="+", choices=list(NOISES), default=list(NOISES), help="fresh is always among them")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "results/push_t/commit.json")
    parser.add_argument("overrides", nargs="*", help="settings of drifting_policy.train, such as trainer.steps=100")
    given = parser.parse_intermixed_args(argv)
    counts = [f"--seeds={given.seeds}", f"--episodes={given.episodes}", "--delays", *map(str, DELAYS), "--"]
    suite = make_suite(parse([*counts, *given.overrides]))
    with ThreadPoolExecutor(given.jobs) as threads:
        arm = suite.arms[PREFIX]
        for job in [threads.submit(train, suite, arm, n, folder(given.runs, arm, n)) for n in range(suite.seeds)]:
            job.result()
    cases = choose_cases(given.delays, given.seams, given.noises)
    runs = [(case, seed) for case in cases for seed in range(suite.seeds)]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as processes:
        call = partial(judge, suite=suite, home=given.runs)
        played = list(processes.map(call, *zip(*runs, strict=True)))
    trials = {case: played[place * suite.seeds : (place + 1) * suite.seeds] for place, case in enumerate(cases)}
    rows = compare({case: row(case, found) for case, found in trials.items()})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, {"benchmark": "commit", "task": suite.task, "rows": rows, "versions": versions()})
    for line in rows:
        print(*(f"{name} {line[name]}" for name in ("delay", "noise", "seam", "jerk", "acceleration", "success", "max_score")))


def choose_cases(delays: Sequence[int], seams: Sequence[str], noises: Sequence[str]) -> list[Seam]:
    """For each delay and noise every seam; always `snap` with fresh noise, with which the others are compared."""
    kinds = [SEAMS[name] for name in SEAMS if name in (SNAP, *seams)]
    held = [NOISES[name] for name in NOISES if name in ("fresh", *noises)]
    return [(seam, delay, more, each) for delay in sorted(delays) for each in held for seam, more in kinds]


def judge(case: Seam, seed: int, *, suite: Suite, home: Path) -> Trial:
    """The newest checkpoint of a run on the first test episodes."""
    torch.set_num_threads(1)
    seam, delay, more, held = case
    run = folder(home, suite.arms[PREFIX], seed)
    options: dict[str, Any] = {name: getattr(suite, name) for name in ("split", "episodes", "num_envs", "inference_batch")}
    execution = Execution(seam, exec_horizon=EXEC_HORIZON, commit_steps=more, held_noise=held)
    steps = last_steps(run, suite.checkpoints)
    return play_trial(run, load_task(suite.task), steps=steps, latency_steps=delay, execution=execution, **options)


def row(case: Seam, trials: Sequence[Trial]) -> dict[str, Any]:
    """The row of one case, as in `delays.py`."""
    seam, delay, more, held = case
    known = make_row(Case(PREFIX, seam, delay), trials, {}, exec_horizon=EXEC_HORIZON)
    return known | {"commit_steps": more, "held_noise": held}


def compare(rows: dict[Seam, dict[str, Any]]) -> list[dict[str, Any]]:
    """Largest jerk and acceleration at the boundaries of chunks over those of `snap` with fresh noise, and the scores."""
    table = []
    for (seam, delay, more, held), known in rows.items():
        snap = rows[SNAP, delay, 0, False]
        line: dict[str, Any] = {"delay": delay, "noise": "held" if held else "fresh"}
        line |= {"seam": seam, "committed": SNAP if seam == SNAP else delay + more}
        for name in ("boundary_jerk", "boundary_acceleration"):
            line[name.removeprefix("boundary_")] = round(known[name] / snap[name], 2)
        for name in ("success", "max_score"):
            line[name] = f"{known[name]:.2f} [{known[f'{name}_low']:.2f}, {known[f'{name}_high']:.2f}]"
        table.append(line | {"measured": known})
    return sorted(table, key=lambda line: line["delay"])


if __name__ == "__main__":
    main()
