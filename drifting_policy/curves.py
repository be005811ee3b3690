"""The training curves of a run as one picture."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from drifting_policy.types import ConfigError

# Title, whether the axis is logarithmic, and the metrics that are drawn if the run has them; "name_" is all that begin so.
PANELS: Sequence[tuple[str, bool, Sequence[str]]] = (
    ("in use, on held-out episodes (raw action units)", False, ("val_action_error", "val_spread")),
    ("distance to the nearest (raw action units)", False, ("val_nearest_", "data_nearest_")),
    ("spread and coverage, as ratios", False, ("val_spread_to_", "val_coverage")),
    ("training samples (network units)", True, ("sample_error", "sibling_spread")),
    ("length of the field before normalisation", True, ("drift_rms_",)),
    ("loss", False, ("loss",)),
)


def draw_curves(run_dir: Path) -> Path:
    """`curves.png` in `run_dir`, drawn from its `metrics.jsonl`.

    Raises:
        ConfigError: where Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which would keep global state and look for a screen
    except ImportError as error:
        raise ConfigError("Drawing curves needs Matplotlib: pip install 'drifting-policy[plot]'.") from error
    curves = read_curves(run_dir / "metrics.jsonl")
    figure = Figure(figsize=(16, 7), layout="constrained")
    for axes, (title, logarithmic, wanted) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        axes.set(title=title, xlabel="step", yscale="log" if logarithmic else "linear")
        axes.grid(alpha=0.3)
        shown = shown_names(curves, wanted)
        for name in shown:
            steps, values = curves[name]
            axes.plot(steps, values, label=name.replace("_", " "), marker="." if len(steps) < 30 else "")
        if shown:
            axes.legend()
    figure.suptitle(run_dir.name)
    draft = run_dir / ".curves.draft.png"
    try:
        figure.savefig(draft, dpi=110)
        draft.replace(run_dir / "curves.png")
    finally:
        draft.unlink(missing_ok=True)
    return run_dir / "curves.png"


def shown_names(names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Those of `names`, sorted, that a panel wants."""
    beginnings = tuple(name for name in wanted if name.endswith("_"))
    return [name for name in sorted(names) if name in wanted or name.startswith(beginnings)]


def read_curves(metrics: Path) -> Mapping[str, tuple[list[int], list[float]]]:
    """Steps and values of every metric in a `metrics.jsonl`; values that were not numbers, and alarms, are left out."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in metrics.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def training_seconds(metrics: Path) -> float:
    """How long the logged steps of a run took, over all its starts."""
    steps, rates = read_curves(metrics).get("steps_per_second", ([], []))
    return sum(((step - before) / rate for step, before, rate in zip(steps, [0, *steps], rates, strict=False)), start=0.0)
