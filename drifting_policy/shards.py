"""Evaluations in parts: each part plays every N-th seed, anywhere, and the parts add up to what one machine would tell."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifting_policy.atomic import write_json
from drifting_policy.config import TaskConfig
from drifting_policy.evaluation import writing_to
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import EvalResult
from drifting_policy.types import ConfigError
from drifting_policy.versions import versions

FORM = "shard=i/N plays part i = 0 .. N-1, shard=merge/N puts the parts together"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of `count` parts of an evaluation; without index, all of them together."""

    index: int | None
    count: int

    @staticmethod
    def parse(text: str, *, episodes: int) -> "Shard":
        """The shard that "3/8" or "merge/8" means.

        Raises:
            ConfigError: another form, or a part without episodes.
        """
        match = re.fullmatch(r"(\d+|merge)/(\d+)", text, re.ASCII)
        if not match:
            raise ConfigError(f"shard '{text}' cannot be read: {FORM}.")
        shard = Shard(None if match[1] == "merge" else int(match[1]), int(match[2]))
        if not 1 <= shard.count <= episodes or (shard.index or 0) >= shard.count:
            raise ConfigError(f"shard '{text}' of {episodes} episodes does not exist: {FORM}, and N is at most {episodes}.")
        return shard

    def of(self, seeds: Sequence[int]) -> list[int]:
        """The seeds of this part."""
        return list(seeds if self.index is None else seeds[self.index :: self.count])

    def file(self, out: Path) -> Path:
        """Where the results of this part lie."""
        return out / f"shard_{self.index}_of_{self.count}.json"


def shard_key(task: TaskConfig, *, checkpoint: str, **settings: Any) -> dict[str, Any]:
    """What all parts must have in common: the checkpoint (by its checksum), the task as it was set, `settings`, packages."""
    world = json.dumps(
        [task.env_id, task.env_options, task.max_steps, task.spec.to_dict()], sort_keys=True, default=str
    )  # data sets and keypoints change no episode
    packages = {name: version for name, version in versions().items() if name != "git"}
    digest = hashlib.sha256(world.encode()).hexdigest()[:16]
    return {"checkpoint": checkpoint, "task": task.name, "task_hash": digest, **settings, **packages}


def write_shard(shard: Shard, result: EvalResult, key: Mapping[str, Any], *, out: Path) -> Path:
    """The file with the episodes of one part, under what they depend on."""
    with writing_to(out):
        write_json(shard.file(out), pack(result, key))
    return shard.file(out)


def pack(result: EvalResult, key: Mapping[str, Any]) -> dict[str, Any]:
    """Episodes and planning times under what they depend on, ready for JSON."""
    episodes = [dataclasses.asdict(episode) for episode in result.episodes]
    return {"key": dict(key), "episodes": episodes, "plan_seconds": list(result.plan_seconds)}


def unpack(file: Path) -> tuple[dict[str, Any], EvalResult] | None:
    """What `pack` put together, from a file; None where it is missing or damaged."""
    try:
        values = json.loads(file.read_text())
        episodes = tuple(Episode(**row) for row in values["episodes"])
        return dict(values["key"]), EvalResult(episodes, tuple(map(float, values["plan_seconds"])), {}, {})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def merge_shards(count: int, seeds: Sequence[int], key: Mapping[str, Any], *, out: Path) -> EvalResult:
    """The whole evaluation from its `count` parts in `out`; merging again gives the same.

    Raises:
        ConfigError: names the parts that are missing or damaged, or a part that was played under another key.
    """
    parts = {index: _read(Shard(index, count), seeds, key, out=out) for index in range(count)}
    lost = [f"{index}/{count}" for index, part in parts.items() if part is None]
    if lost:
        raise ConfigError(
            f"{out} lacks {len(lost)} of {count} shards, or they are damaged; play them: shard={', '.join(lost)}."
        )
    found = [part for part in parts.values() if part is not None]
    episodes = sorted((episode for part in found for episode in part.episodes), key=lambda episode: episode.seed)
    # the first plan of each part warmed up; `latency_summary` leaves out the first of all
    seconds = [*found[0].plan_seconds, *(second for part in found[1:] for second in part.plan_seconds[1:])]
    return EvalResult(tuple(episodes), tuple(seconds), {}, {})


def _read(shard: Shard, seeds: Sequence[int], key: Mapping[str, Any], *, out: Path) -> EvalResult | None:
    """One part; None where it is missing or damaged."""
    part = unpack(shard.file(out))
    if part is None:
        return None
    found, result = part
    for name in sorted({*found, *key}):
        if found.get(name) != key.get(name):
            raise ConfigError(
                f"{shard.file(out)} was played with {name} {found.get(name)}, not {key.get(name)}; "
                f"play it again with shard={shard.index}/{shard.count}, or choose another out=DIR."
            )
    return result if [episode.seed for episode in result.episodes] == sorted(shard.of(seeds)) else None
