"""Exhibits of an evaluation: films of its worst episodes, and fans of chunks that were drawn for one observation each."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from drifting_policy.atomic import replace_folder
from drifting_policy.chunking import plan_noise
from drifting_policy.config import TaskConfig
from drifting_policy.data.thumbnails import thumbnails
from drifting_policy.demonstrations import Demonstrations
from drifting_policy.reporting.gallery import FOLDER, INDEX, checksum
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.video import write_video
from drifting_policy.seams import RECEDING, Execution
from drifting_policy.types import Policy, PolicySpec, Stats

WORST = 4  # episodes; the median and the best one stand beside them
FAN = 32  # chunks for one observation
SMALLEST_DEVIATION = 0.02  # of an element of a thumbnail, whose range is 2: where nothing ever happens, noise is not news
MOMENTS = (0.1, 0.5)  # of each episode, as shares of its steps


def write_exhibits(
    policy: Policy,
    task: TaskConfig,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    episodes: Sequence[Episode],
    *,
    inference_batch: int,
    latency_steps: int,
    execution: Execution = RECEDING,
    demonstrations: Demonstrations | None,
    out: Path,
) -> Path:
    """The folder `out`/exhibits, whole or as it was: an index, and beside it the films and pictures that it names.

    The chosen `episodes` are played again, for an episode is a function of its seed, and which ones are the worst is known only
    when all have been played. With `demonstrations` each fan has the chunk that was demonstrated nearest to its observation.
    The index names the scores.json in `out` by its checksum.
    """
    chosen = choose(episodes)
    seeds = [episode.seed for episode in chosen]
    again = evaluate(
        policy,
        make_env,
        seeds,
        num_envs=1,
        max_steps=task.max_steps,
        inference_batch=inference_batch,
        latency_steps=latency_steps,
        execution=execution,
        video_seeds=seeds,
        keep_trajectories=True,
    )
    draft = out / f".{FOLDER}.{os.getpid()}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        shown = []
        for episode in sorted(again.episodes, key=lambda episode: seeds.index(episode.seed)):
            frames, seen = again.frames[episode.seed], again.trajectories[episode.seed]
            write_video(draft / f"{episode.seed}.mp4", frames, fps=task.control_hz)
            end = _picture(draft / f"{episode.seed}_end.png", frames[-1])
            fans = [
                {"step": step, "picture": _picture(draft / f"{episode.seed}_{step}.png", frames[step])}
                | fan(policy, seen, seed=episode.seed, step=step, demonstrations=demonstrations)
                for step in sorted({int(share * episode.steps) for share in MOMENTS})
            ]
            shown.append(asdict(episode) | {"film": f"{episode.seed}.mp4", "end": end, "fans": fans})
        about = _contract(policy.spec, task) | {"exec_horizon": execution.period(policy.spec)}
        index = {"scores_sha256": checksum(out / "scores.json"), **about, "episodes": shown}
        (draft / INDEX).write_text(json.dumps(index) + "\n")
        replace_folder(draft, out / FOLDER)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out / FOLDER


def choose(episodes: Sequence[Episode]) -> list[Episode]:
    """The worst episodes, the median one and the best, worst first; each once."""
    ranked = sorted(episodes, key=lambda episode: (episode.max_score, episode.final_score, episode.seed))
    places = {*range(min(WORST, len(ranked))), len(ranked) // 2, len(ranked) - 1}
    return [ranked[place] for place in sorted(places)]


def fan(
    policy: Policy, seen: Mapping[str, np.ndarray], *, seed: int, step: int, demonstrations: Demonstrations | None
) -> dict[str, Any]:
    """`chunks` "n t d" for what was `seen` at `step` of an episode, their `spread`, and the `nearest` demonstrated chunk.

    The spread is the mean Euclidean distance per step between a chunk and the mean of all, in raw action units.
    """
    spec = policy.spec
    window = np.maximum(np.arange(step - spec.obs_horizon + 1, step + 1), 0)  # an episode begins with its first observation
    obs = {key: np.repeat(seen[key][window][None], FAN, axis=0) for key in spec.observations}
    chunks = np.asarray(policy.act(obs, noise=plan_noise(seed, step, (FAN, *spec.sample_shape))), np.float64)
    spread = float(np.linalg.norm(chunks - chunks.mean(axis=0), axis=-1).mean())
    newest = {key: seen[key][step] for key in spec.observations}
    nearest = None if demonstrations is None else nearest_chunk(demonstrations, spec, newest)
    return {"spread": spread, "chunks": _rounded(chunks), "nearest": None if nearest is None else _rounded(nearest)}


def nearest_chunk(demonstrations: Demonstrations, spec: PolicySpec, obs: Mapping[str, np.ndarray]) -> np.ndarray:
    """What was demonstrated "t d" around the step that is nearest to the single observation `obs`.

    Nearest is the smallest sum of squares of the observations' elements, each in its standard deviations over all steps; images
    are compared by their thumbnails. Before and behind an episode its first and last action is repeated.
    """
    distance = np.zeros(len(demonstrations.action))
    for key, values in demonstrations.searchable.items():
        seen = thumbnails(obs[key][None])[0] if spec.observations[key].is_image else obs[key]
        deviation = np.maximum(Stats.of(values).std, SMALLEST_DEVIATION if spec.observations[key].is_image else 1e-6)
        distance += (((values - seen) / deviation) ** 2).reshape(len(values), -1).sum(axis=1)
    step = int(distance.argmin())
    ends = demonstrations.episode_ends
    episode = int(np.searchsorted(ends, step, side="right"))
    first, last = (0 if episode == 0 else int(ends[episode - 1])), int(ends[episode]) - 1
    steps = np.arange(spec.pred_horizon) + step - spec.first_executed
    return demonstrations.action[np.clip(steps, first, last)]


def _contract(spec: PolicySpec, task: TaskConfig) -> dict[str, Any]:
    """What a reader of the chunks must know about them."""
    return {
        "unit": spec.action.unit,
        "control_hz": spec.control_hz,
        "first_executed": spec.first_executed,
        "exec_horizon": spec.exec_horizon,
        "picture": None if task.picture is None else asdict(task.picture),
    }


def _picture(path: Path, frame: np.ndarray) -> str:
    """The name of the file that holds `frame` from now on."""
    Image.fromarray(frame).save(path, optimize=True)
    return path.name


def _rounded(values: np.ndarray) -> Any:
    """Nested lists with as many digits as a picture can show."""
    digits = 4 - int(np.floor(np.log10(max(float(np.abs(values).max()), 1e-9))))
    return np.round(values.astype(np.float64), digits).tolist()
