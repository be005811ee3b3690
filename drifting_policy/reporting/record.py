"""What the files of a run say, checked; what they do not say is named."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drifting_policy.checkpoint import CONFIG, checkpoint_path, list_checkpoints, read_config
from drifting_policy.curves import read_curves
from drifting_policy.demonstrations import bundled
from drifting_policy.reporting.gallery import (
    FOLDER,
    INDEX,
    Exhibits,
    checksum,
    finite,
    load,
    outcome,
    read_exhibits,
    reason,
    whole,
)
from drifting_policy.seams import RECEDING
from drifting_policy.types import CheckpointError, ConfigError

METRICS = {"max_score": "max score", "final_score": "final score", "success": "success"}
Curves = Mapping[str, tuple[list[int], list[float]]]


@dataclass(frozen=True)
class Scores:
    """One scores.json: what was played, `metrics` with value, low, high, confidence, method and n, and every episode."""

    folder: Path
    about: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    episodes: Sequence[Mapping[str, Any]]

    @property
    def latency_steps(self) -> int:
        """The simulated latency."""
        return int(self.about["latency_steps"])

    @property
    def world(self) -> tuple[Any, ...]:
        """What evaluations have in common that differ in their latency only."""
        told = ("task", "split", "step", "checkpoint", "objective", "sampler")
        executed = asdict(RECEDING) | dict(self.about)
        return (
            *(self.about.get(name) for name in told),
            *(executed[name] for name in asdict(RECEDING)),
            [episode["seed"] for episode in self.episodes],
        )


@dataclass(frozen=True)
class Run:
    """Everything that is known about a run; `missing` says of each part that is not why."""

    folder: Path
    scores: Scores | None
    delays: Sequence[Scores]
    settings: Mapping[str, Any]
    curves: Curves
    latency: Mapping[str, Any]
    exhibits: Exhibits | None
    film: Path | None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder as it was given."""
        return str(self.folder)


def read_run(folder: Path) -> Run:
    """The run in `folder`: what a training, or an evaluation of a checkpoint, left there.

    Raises:
        ConfigError: where there is no run, or its scores are damaged.
    """
    found = _all_scores(folder)
    if not found and not (folder / "metrics.jsonl").is_file():
        raise ConfigError(f"{folder} is no run: it has neither scores.json nor metrics.jsonl; give the folder of a training.")
    missing: dict[str, str] = {}
    scores = found[0] if found else None
    if scores is None:
        missing["scores"] = f"no scores: trainer.eval_episodes=0; python -m drifting_policy.eval ckpt={folder} plays episodes"
    delays = {one.latency_steps: one for one in reversed(found) if scores and one.world == scores.world}
    exhibits = _exhibits(scores, missing)
    return Run(
        folder,
        scores,
        [delays[steps] for steps in sorted(delays)],
        _settings(folder, scores, missing),
        _curves(folder, scores, missing),
        _latency(scores, missing),
        exhibits,
        _film(scores, exhibits, missing),
        missing,
    )


def _all_scores(folder: Path) -> list[Scores]:
    """The scores in a run, the ones that the page is about first; tables over latency stand in files of their own."""
    homes = [folder, folder / "eval", *(path / "eval" for path in reversed(list_checkpoints(folder)))]
    found = []
    for home in homes:
        late = sorted(home.glob("latency_*/scores.json"), key=lambda file: (len(file.parent.name), file.parent.name))
        for file in [home / "scores.json", *late]:
            if file.is_file() and not isinstance((content := load(file)).get("rows"), list):
                found.append(_scores(file, content))
    return found


def _scores(file: Path, content: Mapping[str, Any]) -> Scores:
    try:
        metrics = {name: dict(content["metrics"][name]) for name in (*METRICS, *content["metrics"])}
        for metric in metrics.values():
            metric |= {name: finite(metric[name]) for name in ("value", "low", "high", "confidence")}
        episodes = [outcome(row) for row in content["episodes"]]
        about = {name: value for name, value in content.items() if name not in ("metrics", "episodes")}
        scores = Scores(file.parent, about | {"latency_steps": whole(about.get("latency_steps", 0))}, metrics, episodes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} is damaged ({reason(error)}); evaluate the checkpoint again.") from error
    if not episodes:
        raise ConfigError(f"{file} is damaged: it has no episodes; evaluate the checkpoint again.")
    return scores


def _settings(folder: Path, scores: Scores | None, missing: dict[str, str]) -> Mapping[str, Any]:
    """What the checkpoint says that was evaluated, and report.json beside it."""
    step = scores.about.get("step") if scores else None
    named = str(scores.about.get("checkpoint", "")) if scores else ""
    runs = [folder, *([Path(named)] if named else [])]
    checkpoints = [checkpoint_path(run, step) for run in runs] if isinstance(step, int) else list_checkpoints(folder)[-1:]
    above = [*scores.folder.parents[:2]] if scores else []
    built_in = [bundled(str(scores.about.get("task")))] if scores and named == "bundled" else []
    found: dict[str, Any] = {}
    for directory in (*checkpoints, *above, *runs, *built_in):
        if not (directory / CONFIG).is_file():
            continue
        try:
            config = read_config(directory)
        except CheckpointError:
            continue
        if step is None or config.get("step") == step:
            found = config
            break
    report = folder / "report.json"
    told = load(report) if report.is_file() else {}
    if found or (told and (step is None or told.get("step") == step)):
        return told | found
    missing["settings"] = f"no settings: the checkpoint {named or folder} of step {step} is not there any more"
    return {}


def _curves(folder: Path, scores: Scores | None, missing: dict[str, str]) -> Curves:
    """Every metric with the steps where it was a number; of an evaluation, those of the run that its checkpoint lies in."""
    named = Path(str(scores.about.get("checkpoint", ""))) if scores else folder
    files = [home / "metrics.jsonl" for home in (folder, named, *named.parents[1:2])]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        missing["curves"] = f"no training curves: {files[0]} does not exist"
        return {}
    try:
        return {
            name: (list(map(whole, steps)), list(map(finite, values))) for name, (steps, values) in read_curves(file).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        missing["curves"] = f"no training curves: {file} is damaged ({reason(error)})"
        return {}


def _latency(scores: Scores | None, missing: dict[str, str]) -> Mapping[str, Any]:
    """latency.json, its histogram as two lists that fit each other, or without it."""
    if scores is None:
        return {}
    file = scores.folder / "latency.json"
    try:
        content = load(file)
        told: dict[str, Any] = {name: finite(content[name]) for name in ("p50_ms", "p99_ms", "max_ms", "n")}
    except (ConfigError, KeyError, TypeError, ValueError):
        missing["latency"] = f"no latency: {file} is missing or damaged"
        return {}
    try:
        edges, counts = content["histogram"]["edges_ms"], [whole(count) for count in content["histogram"]["counts"]]
        edges = [finite(edge) for edge in edges]
        if len(edges) != len(counts) + 1 or min(edges) <= 0 or max(counts) < 1:
            raise ValueError("edges and counts do not fit")
        return told | {"edges_ms": edges, "counts": counts}
    except (KeyError, TypeError, ValueError):
        missing["latency histogram"] = f"no histogram of planning times: {file} holds a summary only; evaluate again"
        return told


def _exhibits(scores: Scores | None, missing: dict[str, str]) -> Exhibits | None:
    """The exhibits that were made of these scores."""
    if scores is None:
        return None
    home = scores.folder / FOLDER
    if not (home / INDEX).is_file():
        missing["exhibits"] = "no film, no drawn chunks: videos=0, or shards put together"
        return None
    try:
        exhibits = read_exhibits(home)
    except ConfigError as error:
        missing["exhibits"] = f"no film, no drawn chunks: {error}"
        return None
    if exhibits.scores_sha256 != checksum(scores.folder / "scores.json"):
        missing["exhibits"] = f"no film, no drawn chunks: {home} belongs to another evaluation"
        return None
    return exhibits


def _film(scores: Scores | None, exhibits: Exhibits | None, missing: Mapping[str, str]) -> Path | None:
    """The film of the first episodes, unless the exhibits beside it tell that it shows other ones."""
    if scores is None or "another evaluation" in missing.get("exhibits", ""):
        return None
    film = scores.folder / "episodes.mp4"
    return film if film.is_file() else None
