"""Metrics of an episode: its largest and its last score, its success, and which stages of its task it reached."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the metrics of a finished evaluation need no simulator
    from drifting_policy.rollout.episode import Episode

LABELS = {"max_score": "max score", "final_score": "final score", "success": "success"}
ROUNDING = 1e-6  # scores are sums of parts such as 1/7


def labels(stages: int = 0) -> dict[str, str]:
    """The metrics of a task with so many equal stages, and what people call them: p1 .. pn beside those of every task."""
    return LABELS | {f"p{stage}": f"p{stage}" for stage in range(1, stages + 1)}


def stages_of(metrics: Collection[str]) -> int:
    """How many stages the metrics with these names tell of."""
    return sum(name.startswith("p") and name[1:].isdigit() for name in metrics)


def is_share(metric: str) -> bool:
    """Whether episodes have this metric or not, so that its mean is a share of them."""
    return metric not in ("max_score", "final_score")


def episode_metrics(episode: "Episode", stages: int = 0) -> dict[str, float]:
    """The metrics of one episode; stage k of n is reached by a score of k/n (p1 .. pn: Chi et al. 2023, section 5)."""
    values = {name: float(getattr(episode, name)) for name in LABELS}
    reached = {f"p{k}": float(episode.max_score >= k / stages - ROUNDING) for k in range(1, stages + 1)}
    return values | reached
