"""Alarms: what the validations of a run say when it has collapsed or diverged; docs/training.md tells why so soon."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drifting_policy.training.logging import Log

Figures = Mapping[str, Any]
Check = Callable[[Figures, Sequence[Figures]], str | None]

FIRST_JUDGED = 500  # steps that any run may take before it is judged, longer with a longer warm-up
COLLAPSED = 0.1  # of the deviation of similar demonstrations, and of the samples' own error
TOO_WIDE = 2.0  # times the deviation of similar demonstrations
TOO_FAR = 1.5  # times the error of the mean chunk; a policy that draws demonstrations at random has about sqrt(2)
RELAPSED = 2.0  # times the lowest error so far


class Watch:
    """Hears every validation of a run and raises each alarm once, resumed or not."""

    def __init__(self, log: Log, *, warmup_steps: int, stochastic: bool) -> None:
        """Warn through `log`, which knows what was said before; a policy that is not `stochastic` cannot collapse."""
        self.log, self.stochastic, self.first = log, stochastic, max(warmup_steps, FIRST_JUDGED)
        self.validations: list[Figures] = [line for line in log.earlier if "val_action_error" in line]
        self.raised = {line["alarm"] for line in log.earlier if "alarm" in line}

    def hear(self, step: int, figures: Mapping[str, float]) -> None:
        """Judge the run by its validations up to this one."""
        self.validations.append({"step": step, **figures})
        for name, sentence in find_alarms(self.validations, first=self.first, stochastic=self.stochastic).items():
            if name not in self.raised:
                self.raised.add(name)
                self.log.warn(step, name, sentence)


def find_alarms(validations: Sequence[Figures], *, first: int, stochastic: bool) -> dict[str, str]:
    """Name and sentence of what is wrong at the last validation and was at the one before, both at step `first` or later."""
    if len(validations) < 2 or validations[-2]["step"] < first:
        return {}
    checks: dict[str, Check] = {"diverged": diverged}
    if stochastic:
        checks["collapsed"] = collapsed
    for name, check in checks.items():
        before, now = (check(validations[end], validations[:end]) for end in (-2, -1))
        if before and now:
            return {name: f"At step {validations[-1]['step']} the policy has {name}: {now}"}
    return {}


def collapsed(figures: Figures, past: Sequence[Figures]) -> str | None:
    """What is seen and to be tried where samples hardly differ although demonstrations do and the samples are wrong.

    Both must hold: where demonstrations follow from the observation, samples ought to agree, and err little.
    """
    to_data, to_error = (_number(figures, f"val_spread_to_{what}") for what in ("data", "error"))
    if not (to_data < COLLAPSED and to_error < COLLAPSED):
        return None
    return (
        f"the samples of one observation deviate by only {to_data:.1%} of what demonstrations of similar observations do, "
        f"and by {to_error:.1%} of their own error, so it is a regression; try a "
        "lower trainer.learning_rate and, with objective=drift, objective.samples=4, repulsion=1, affinity_floor=0 or "
        "scale=condition."
    )


def diverged(figures: Figures, past: Sequence[Figures]) -> str | None:
    """What is seen and to be tried where samples lie far outside the data, or farther from it than they did."""
    error, mean, wide = (_number(figures, key) for key in ("val_action_error", "data_mean_error", "val_spread_to_data"))
    lowest = min((value for value in (_number(row, "val_action_error") for row in past) if value >= 0), default=math.inf)
    if not math.isfinite(error):
        seen = "its error on held-out episodes is not finite"
    elif error > TOO_FAR * mean:
        seen = f"its error on held-out episodes, {error:.3g}, is {error / mean:.1f} times that of the mean demonstrated chunk"
    elif error > RELAPSED * lowest:
        seen = f"its error on held-out episodes, {error:.3g}, is {error / lowest:.1f} times the lowest so far"
    elif wide > TOO_WIDE:
        seen = f"the samples of one observation deviate {wide:.1f} times as much as demonstrations of similar observations do"
    else:
        return None
    return f"{seen}; try a lower trainer.learning_rate and, with objective=drift, the default objective.coupling and force."


def _number(figures: Figures, name: str) -> float:
    """The figure, or NaN, with which every comparison is false, where it was none."""
    value = figures.get(name)
    return math.nan if value is None else float(value)
