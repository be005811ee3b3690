"""What a data set holds: its format, episodes, arrays with their ranges, and what deserves a second look."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifting_policy.data.replay_buffer import ReplayBuffer
from drifting_policy.data.sources import find_source
from drifting_policy.data.suspicions import counted, findings
from drifting_policy.types import Stats

CHANNELS = 16  # of one array that get a line each
IMAGES = 1000  # whose levels are looked at
FINDINGS = 12  # that are told of one array


@dataclass(frozen=True)
class Inspection:
    """A data set and what was found: `control_hz` where the format tells it, statistics of every key, findings."""

    format: str
    control_hz: float | None
    buffer: ReplayBuffer
    stats: dict[str, Stats]
    findings: tuple[str, ...]


def inspect(path: str | Path, keys: Sequence[str] | None = None) -> Inspection:
    """The data set at `path`, of any known format, with `keys` or all of them, looked at.

    Raises:
        DatasetError: where it cannot be read, as in `open_source`.
    """
    name, source = find_source(path)
    buffer = source.open(Path(path), keys)
    return Inspection(
        format=name,
        control_hz=source.control_hz(Path(path)),
        buffer=buffer,
        stats={key: _stats(values) for key, values in buffer.arrays.items()},
        findings=tuple(findings(buffer)),
    )


def describe(found: Inspection) -> str:
    """The inspection as text for people."""
    buffer, lengths = found.buffer, found.buffer.lengths
    rate = "rate unknown to the format" if found.control_hz is None else f"{found.control_hz:g} Hz"
    span = f"{lengths.min()} / {np.median(lengths):g} / {lengths.max()} steps an episode (min / median / max)"
    head = f"{buffer.place}: {found.format}, {counted(buffer.num_episodes, 'episode')}, {counted(buffer.num_steps, 'step')}"
    width = max([len(key) for key in buffer.arrays] + [8]) + 6
    lines = [head, f"{span}, {rate}", "", f"{'key':{width}}{'shape':>14}{'dtype':>10}{_columns('min', 'max', 'mean', 'std')}"]
    for key, values in buffer.arrays.items():
        shape = "x".join(map(str, values.shape[1:])) or "-"
        lines.append(f"{key:{width}}{shape:>14}{values.dtype!s:>10}{_numbers(_overall(found.stats[key]))}")
        lines += _channels(found.stats[key], width + 24)
    lines += ["", *(_shortened(found.findings) if found.findings else ["Nothing deserves a second look."])]
    return "\n".join(lines)


def _stats(values: np.ndarray) -> Stats:
    """Statistics per element; of images, per channel and over at most 1000 of them."""
    if values.ndim == 4 and values.dtype == np.uint8:
        chosen = values[np.unique(np.linspace(0, len(values) - 1, IMAGES).astype(int))]
        return Stats.of(chosen.reshape(-1, values.shape[-1]))
    return Stats.of(values)


def _overall(stats: Stats) -> tuple[float, float, float, float]:
    """Minimum, maximum, mean and standard deviation over all elements."""
    mean = float(stats.mean.mean())
    return float(stats.min.min()), float(stats.max.max()), mean, float(np.sqrt((stats.std**2 + stats.mean**2).mean() - mean**2))


def _channels(stats: Stats, width: int) -> Iterator[str]:
    parts = [part.ravel() for part in (stats.min, stats.max, stats.mean, stats.std)]
    if 1 < len(parts[0]) <= CHANNELS:
        for element, row in enumerate(zip(*parts, strict=True)):
            yield f"{f'  [{element}]':{width}}{_numbers(row)}"


def _numbers(values: Sequence[float]) -> str:
    return _columns(*(f"{value:.5g}" for value in values))


def _columns(*texts: str) -> str:
    return "".join(f"{text:>13}" for text in texts)


def _shortened(found: Sequence[str]) -> Iterator[str]:
    """The findings, of one array no more than a few."""
    told: dict[str, int] = {}
    for finding in found:
        array = finding.split(" ")[0].split("[")[0]
        told[array] = told.get(array, 0) + 1
        if told[array] <= FINDINGS:
            yield f"look: {finding}"
    yield from (f"look: {array} has {n - FINDINGS} more of the kind." for array, n in told.items() if n > FINDINGS)
