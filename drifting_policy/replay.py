"""`python -m drifting_policy.replay task=NAME data=NAME`: demonstrations played open loop, as a test of data and simulator.

Actions of another convention, another simulator version or another initial state show here, before a policy is blamed.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from drifting_policy import cli
from drifting_policy.atomic import write_json
from drifting_policy.commands import ReplayConfig
from drifting_policy.config import TaskConfig, choose_data
from drifting_policy.demonstrations import Demonstrations, load_demonstrations
from drifting_policy.evaluation import make_env, writing_to
from drifting_policy.rollout.episode import check_actions
from drifting_policy.rollout.replay import Replay, replay
from drifting_policy.rollout.statistics import summarize
from drifting_policy.types import ConfigError
from drifting_policy.versions import versions


def run(config: ReplayConfig) -> int:
    """Replay, tell and write replay.json; 1 where the demonstrations score below the rate that the task stores."""
    task = config.task
    if not task.restore:
        raise ConfigError(f"Task {task.name} does not say what restores its environment; name a reset option under restore.")
    data = choose_data(task, config.data)
    name = data if data in task.data else "data"
    out = Path(config.out or f"runs/replay/{task.name}_{name}")
    demonstrations = load_demonstrations(task, data, states=True)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    replays = replay_demonstrations(task, demonstrations, episodes=config.episodes)
    required = task.data[name].replay_score if name in task.data else None
    table: dict[str, Any] = {"task": task.name, "data": data, "required_max_score": required}
    table |= summary(replays, stages=task.stages) | {"versions": versions()}
    with writing_to(out):
        write_json(out / "replay.json", table)
    print(report(table, task))
    print(f"  files        {out}")
    reached = table["metrics"]["max_score"]["value"]
    if required is not None and reached < required:
        print(
            f"failed: the demonstrations reach a mean max score of {reached:.4f} when replayed, not {required}; the simulator, "
            f"the action convention or the data set of task {task.name} is not the one they were made with.",
            file=sys.stderr,
        )
        return 1
    return 0


def replay_demonstrations(task: TaskConfig, demonstrations: Demonstrations, *, episodes: int = 0) -> list[Replay]:
    """The outcomes of the first `episodes` demonstrations (0: of all), each cut to the steps that an evaluation grants."""
    env = make_env(task)
    ends = demonstrations.episode_ends[: episodes or None]
    starts = np.concatenate([[0], ends[:-1]])
    states = demonstrations.states
    try:
        check_actions(task.spec, env)
        replays = []
        for number, (start, end) in enumerate(zip(starts, tqdm(ends, desc="demonstrations"), strict=True)):
            steps = slice(start, min(end, start + task.max_steps))
            recorded = {
                option: states[option][steps].reshape(steps.stop - start, -1)[:, : restore.compare]
                for option, restore in task.restore.items()
                if restore.compare != 0
            }
            options: dict[str, Any] = {option: values[start] for option, values in states.items()}
            if demonstrations.models:
                options["model"] = demonstrations.models[number]
            replays.append(replay(env, demonstrations.action[steps], number=number, options=options, recorded=recorded))
    finally:
        env.close()
    return replays


def summary(replays: Sequence[Replay], *, stages: int = 0) -> dict[str, Any]:
    """Aggregates over the demonstrations, and every one of them."""
    metrics = summarize((each.episode for each in replays), stages=stages)
    told = sorted(set.intersection(*(set(each.largest) for each in replays)))
    return {
        "n_episodes": len(replays),
        "metrics": {name: asdict(interval) for name, interval in metrics.items()},
        "max_score": spread([each.episode.max_score for each in replays]),
        "largest": {name: spread([each.largest[name] for each in replays]) for name in told},
        "deviation": {name: spread([each.deviation[name] for each in replays]) for name in replays[0].deviation},
        "episodes": [asdict(each.episode) | {"largest": each.largest, "deviation": each.deviation} for each in replays],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, smallest, median and largest value."""
    data = np.asarray(values)
    return {"mean": float(data.mean()), "min": float(data.min()), "median": float(np.median(data)), "max": float(data.max())}


def report(table: dict[str, Any], task: TaskConfig) -> str:
    """The summary for people."""
    required = table["required_max_score"]
    told = "no rate is stored for these data" if required is None else f"required {required}"
    score, success = table["max_score"], table["metrics"]["success"]["value"]
    lines = [
        f"\n{table['task']}, {table['n_episodes']} demonstrations of {table['data']}, replayed",
        f"  max score    mean {score['mean']:.3f}, least {score['min']:.3f}   {told}",
        f"  success      {100 * success:.1f} %",
    ]
    if task.stages:
        shares = (f"p{k} {100 * table['metrics'][f'p{k}']['value']:.1f} %" for k in range(1, task.stages + 1))
        lines.append(f"  stages       {', '.join(shares)}")
    for name, value in table["largest"].items():
        lines.append(f"  {f'max {name}':<12} mean {value['mean']:.3f}, least {value['min']:.3f}")
    for name, value in table["deviation"].items():
        unit = f" {task.restore[name].unit}".rstrip()
        lines.append(
            f"  deviation    {name}: largest {value['max']:.2g}{unit}, median demonstration {value['median']:.2g}{unit}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.main("replay", run)
