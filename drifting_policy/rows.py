"""Result rows: a number with its interval, and everything that decided it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifting_policy.rollout.statistics import Interval
from drifting_policy.trial import Trial
from drifting_policy.types import CheckpointError
from drifting_policy.versions import versions

DIGITS = 4


def result_row(
    name: str, metric: str, interval: Interval, trials: Sequence[Trial], *, latency_ms: Mapping[str, float] | None, **about: Any
) -> dict[str, Any]:
    """One row of results/<task>/<name>.json: who, what, the interval, n, and what decided the number.

    `trials` hold one training run each, all of one recipe; `about` adds columns.
    """
    config = trials[0].config
    recipe = {key: config[key] for key in ("objective", "generator", "trainer", "data")} | {"sampler": trials[0].sampler}
    reports = [_report(trial.run) for trial in trials]
    return {
        "task": config["task"],
        "data": config["data"],
        "objective": name,
        "head": config["generator"]["name"],
        "nfe": trials[0].nfe,
        "metric": metric,
        "value": round(interval.value, DIGITS),
        "low": round(interval.low, DIGITS),
        "high": round(interval.high, DIGITS),
        "confidence": interval.confidence,
        "method": interval.method,
        "split": trials[0].split,
        "n_episodes": len(trials[0].seeds),
        "n_checkpoints": len(trials[0].steps),
        "n_training_seeds": len(trials),
        "seeds_hash": digest(list(trials[0].seeds)),
        "config": recipe,
        "config_hash": digest(recipe),
        "latency_ms": latency_ms and {key: round(value, 3) for key, value in latency_ms.items()},
        "train_seconds": round(sum(report["train_seconds"] for report in reports) / len(reports)),
        "git": {"trained": sorted({report["versions"]["git"] for report in reports}), "judged": versions()["git"]},
        "versions": versions(),
        **about,
    }


def digest(value: Any) -> str:
    """A short checksum of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _report(run: Path) -> dict[str, Any]:
    """What the training wrote at its end."""
    try:
        report: dict[str, Any] = json.loads((run / "report.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run} has no readable report.json; finish its training with resume=true.") from error
    return report
