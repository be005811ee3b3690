"""`python -m drifting_policy.playback log=run.zarr ckpt=RUN`: a recorded run of a controller, repeated bit for bit.

Every plan is drawn again by the policy from what it was drawn from, and the controller runs again through the same times,
observations and plans. What differs then is named: another policy, other weights, another machine's arithmetic.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from drifting_policy import cli
from drifting_policy.checkpoint import load_policy
from drifting_policy.commands import PlaybackConfig
from drifting_policy.control.controller import Controller
from drifting_policy.control.exchange import Exchange
from drifting_policy.control.inference import Inference
from drifting_policy.control.planner import Planner
from drifting_policy.control.status import Status
from drifting_policy.control.watchdog import Watchdog
from drifting_policy.recorder import draft_of, finish
from drifting_policy.run_log import Log, limits_of, open_log
from drifting_policy.types import ConfigError, Policy, PolicySpec
from drifting_policy.viewer import write_rerun


@final
@dataclasses.dataclass(frozen=True)
class Repetition:
    """How many records there are, and the indices of those that the repetition did not give bit for bit."""

    count: int
    different: list[int]
    largest: float

    def sentence(self, what: str) -> str:
        """For people."""
        if not self.different:
            return f"{what}: {self.count} of {self.count} identical"
        return (
            f"{what}: {self.count - len(self.different)} of {self.count} identical; the first other one is number "
            f"{self.different[0]}, the largest difference {self.largest:.3g}"
        )


def repeat_plans(log: Log, policy: Policy) -> Repetition:
    """Draw every plan that did not fail again with `policy`.

    Raises:
        ConfigError: a policy of another contract.
    """
    if policy.spec.contract_hash != log.spec.contract_hash:
        raise ConfigError(
            f"The run was recorded with the contract {log.spec.contract_hash}, the policy's is {policy.spec.contract_hash}."
        )
    planner = log.planner()
    exchange = planner.exchange(log.spec, max_prefix=log.max_prefix)
    different, largest = [], 0.0
    plans = log.streams["planned"][~log.streams["planned"]["failed"]]
    for number, row in enumerate(plans):
        ask(log, row, exchange)
        planner.answer(policy, exchange, lambda: 0.0)
        if exchange.error is not None or not np.array_equal(exchange.chunk, row["chunk"]):
            different.append(number)
            gap = math.inf if exchange.error is not None else float(np.abs(exchange.chunk - row["chunk"]).max())
            largest = max(largest, gap)
    return Repetition(len(plans), different, largest)


def ask(log: Log, row: Any, exchange: Exchange) -> None:
    """Put the request of a plan into `exchange`, as the controller did."""
    began, observed = log.streams["began"], log.streams["observed"]
    episode = int(np.searchsorted(began["order"], row["order"])) - 1
    newest = int(np.flatnonzero((observed["t"] == row["t_obs"]) & (observed["order"] < row["order"]))[-1])
    first = int(np.searchsorted(observed["order"], began["order"][episode]))
    horizon = log.spec.obs_horizon
    places = [max(newest - back, first) for back in reversed(range(horizon))]
    for key, window in exchange.windows.items():
        window[...] = observed[f"obs {key}"][places]
    exchange.numbers[:2], exchange.seed[0] = (row["plan"], row["prefix_steps"]), began["seed"][episode]
    exchange.prefix[...] = row["prefix"]


@final
class RecordedInference(Inference):
    """Answers with the plans of a log, each at the control step at which it came; `order` is that of this step's command."""

    def __init__(self, log: Log) -> None:
        self._log, self._planner = log, log.planner()
        self._row: Any = None
        self._plans = iter(log.streams["planned"])
        self._next: Any = next(self._plans, None)
        self.order = 0

    @property
    def spec(self) -> PolicySpec:
        """What the recorded policy saw and commanded."""
        return self._log.spec

    @property
    def max_prefix(self) -> int:
        """The longest prefix that it took."""
        return self._log.max_prefix

    @property
    def ended(self) -> str | None:
        """None: what never came in the run does not come now."""
        return None

    def start(self, planner: Planner, clock: Callable[[], float]) -> None:
        """Make the memory."""
        self.exchange = planner.exchange(self.spec, max_prefix=self.max_prefix)

    def ask(self, now: float) -> None:
        """Nothing is drawn."""

    def poll(self, now: float) -> bool:
        """Whether the next plan of the log came before this step's command."""
        row = self._next
        if row is None or row["order"] > self.order:
            return False
        self._next = next(self._plans, None)
        exchange = self.exchange
        exchange.error = "The recorded policy failed here." if row["failed"] else None
        exchange.chunk[...], exchange.noise[...] = row["chunk"], row["noise"]
        exchange.numbers[2], exchange.times[:] = row["noisy"], (row["begin"], row["end"], row["spread"])
        return True

    def close(self) -> None:
        """Nothing runs."""


def repeat_commands(log: Log) -> Repetition:
    """Run the controller again through the times, observations and plans of the log."""
    options = dict(log.options) | {"limits": limits_of(log.options["limits"]), "contract": None}
    if options["watchdog"] is not None:
        options["watchdog"] = Watchdog(**options["watchdog"])
    inference = RecordedInference(log)
    different, largest, acts = [], 0.0, 0
    with Controller(inference, clock=lambda: 0.0, **options) as controller:
        for kind, row in events(log):
            if kind == "began":
                controller.reset(int(row["seed"]))
            elif kind == "observed":
                controller.submit({key: row[f"obs {key}"] for key in log.spec.observations}, float(row["t"]))
            else:
                inference.order = row["order"]
                action, status = controller.action(float(row["t"]))
                if status != row["status"] or not np.array_equal(action, row["action"], equal_nan=True):
                    different.append(acts)
                    gap = float(np.abs(action - row["action"]).max())
                    largest = max(largest, gap if math.isfinite(gap) else math.inf)
                acts += 1
    return Repetition(acts, different, largest)


def events(log: Log) -> list[tuple[str, Any]]:
    """What the loop did, in its order; the plans come by themselves."""
    found = [(name, row) for name in ("began", "observed", "acted") for row in log.streams[name]]
    return sorted(found, key=lambda event: int(event[1]["order"]))


def run(config: PlaybackConfig) -> int:
    """Repeat, and tell; 1 where anything differs."""
    if not config.log:
        raise ConfigError("Name the recording: log=run.zarr.")
    place = Path(config.log)
    if not place.exists() and draft_of(place).exists():
        print(f"{place} was never closed; finishing it.")
        finish(draft_of(place))
    log = open_log(place)
    acted = log.streams["acted"]
    counts = {status.name: int((acted["status"] == status).sum()) for status in Status}
    told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    print(f"{place}: {len(log.streams['began'])} episodes, {len(acted)} control steps ({told})")
    results = {"commands": repeat_commands(log)}
    if config.ckpt:
        torch.set_num_threads(config.threads)
        results["plans"] = repeat_plans(log, load_policy(config.ckpt))
    for what, result in results.items():
        print(f"  {result.sentence(what)}")
    if config.view is not None:
        print(f"  view it with: rerun {write_rerun(log, config.view)}")
    return 1 if any(result.different for result in results.values()) else 0


if __name__ == "__main__":
    cli.main("playback", run)
