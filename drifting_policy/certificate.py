"""The latency certificate: a policy in its control loop, paced by a clock; what was measured, and whether it is in time."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from drifting_policy.atomic import write_json
from drifting_policy.chunking import ChunkExecutor
from drifting_policy.control.latency import Histogram
from drifting_policy.types import Policy, PolicySpec
from drifting_policy.versions import versions

CERTIFICATE, PICTURE = "latency.json", "latency.png"
OBSERVATIONS = 32  # made up beforehand, and shown in turns
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@final
@dataclass
class Timing:
    """What was measured, in seconds.

    Attributes:
        hz: control cycles per second that were asked for.
        inference: duration of a plan.
        cycle: from the tick at which a cycle is due to its command.
        jitter: how far the distance between the beginnings of two cycles is from the period.
        misses: cycles whose command came after the next tick.
    """

    hz: float
    inference: Histogram = field(default_factory=Histogram)
    cycle: Histogram = field(default_factory=Histogram)
    jitter: Histogram = field(default_factory=Histogram)
    misses: int = 0

    @property
    def held(self) -> bool:
        """Whether every command came before the next tick."""
        return self.misses == 0

    @property
    def verdict(self) -> str:
        """Whether the rate was held, in one sentence."""
        count, longest = self.cycle.count, self.cycle.max
        told = f"{self.misses} of {count} cycles missed the deadline of {1000 / self.hz:.4g} ms"
        if self.held:
            return f"{self.hz:g} Hz was held: {told}, and the longest took {1000 * longest:.3g} ms."
        return (
            f"{self.hz:g} Hz was NOT held: {told}; the longest took {1000 * longest:.3g} ms, which allows {1 / longest:.3g} Hz."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: percentiles in milliseconds, histograms in seconds."""
        parts = {"inference": self.inference, "cycle": self.cycle, "jitter": self.jitter}
        return {
            "hz": self.hz,
            "cycles": self.cycle.count,
            "plans": self.inference.count,
            "misses": self.misses,
            "held": self.held,
            "verdict": self.verdict,
            **{f"{name}_ms": histogram.summary() for name, histogram in parts.items()},
            "histograms": {name: histogram.to_dict() for name, histogram in parts.items()},
        }


def drive(
    policy: Policy,
    *,
    hz: float,
    cycles: int,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[], object] = lambda: None,
) -> Timing:
    """The timing of `cycles` control cycles, one in exec_horizon of which plans; two plans beforehand are not counted.

    A cycle begins at its tick, or as soon as the one before it is done; ticks that passed meanwhile are left out. The
    observations are drawn from a fixed seed. `progress` is called after every cycle, outside of what is measured.
    """
    timing, period = Timing(hz), 1 / hz
    executor = ChunkExecutor(policy, clock=clock)
    shown = made_up(policy.spec)
    for _ in range(2):
        executor.reset(seeds=[0])
        executor.step(shown[0])
    executor.reset(seeds=[1])
    plans, before = len(executor.plan_seconds), None
    due = clock()
    for cycle in range(cycles):
        if (ahead := due - clock()) > 0:
            sleep(ahead)
        begin = clock()
        executor.step(shown[cycle % OBSERVATIONS])
        end = clock()
        timing.cycle.record(end - due)
        timing.misses += end > due + period
        if before is not None:
            timing.jitter.record(abs(begin - before - period))
        if len(executor.plan_seconds) > plans:
            timing.inference.record(executor.plan_seconds[-1])
            plans = len(executor.plan_seconds)
        before = begin
        due += period * max(1, int((end - due) / period))
        progress()
    return timing


def made_up(spec: PolicySpec) -> list[dict[str, np.ndarray]]:
    """Observations "1 ..." by key for one robot: standard normal numbers, random bytes for images, always the same."""
    rng = np.random.default_rng(0)

    def one(shape: tuple[int, ...], *, image: bool) -> np.ndarray:
        return rng.integers(0, 256, shape, np.uint8) if image else rng.standard_normal(shape, dtype=np.float32)

    return [
        {key: one((1, *array.shape), image=array.is_image) for key, array in spec.observations.items()}
        for _ in range(OBSERVATIONS)
    ]


def machine() -> dict[str, Any]:
    """The computer as far as it decides a latency."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "allowed_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.is_file() else "unknown",
        "kernel": f"{platform.system()} {platform.release()}",
        "realtime_kernel": "PREEMPT_RT" in platform.version(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def write_certificate(folder: Path, timing: Timing, *, spec: PolicySpec, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write latency.json and, where Matplotlib is installed, latency.png into `folder`; what the JSON says."""
    certificate = {
        **timing.to_dict(),
        **about,
        "exec_horizon": spec.exec_horizon,
        "contract_hash": spec.contract_hash,
        "machine": machine(),
        "versions": versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    certificate["picture"] = PICTURE if draw(timing, folder / PICTURE) else None
    write_json(folder / CERTIFICATE, certificate)
    return certificate


def draw(timing: Timing, path: Path) -> bool:
    """Draw how often what took how long; False where Matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # without pyplot, which would keep global state and look for a screen
    except ImportError:
        return False
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, histogram in (("plan", timing.inference), ("cycle", timing.cycle), ("jitter", timing.jitter)):
        shares = np.concatenate([np.linspace(0, 99, 100), 100 - np.geomspace(1, 0.01, 50)])
        axes.plot([1000 * histogram.percentile(float(q)) for q in shares], 1 - shares / 100, label=name)
    axes.axvline(1000 / timing.hz, color="black", linestyle="--", label="deadline")
    axes.set(xscale="log", yscale="log", xlabel="ms", ylabel="share of what takes longer", title=timing.verdict)
    axes.title.set_fontsize(8)
    axes.grid(alpha=0.3)
    axes.legend()
    draft = path.with_name(f".{path.stem}.draft.png")
    try:
        figure.savefig(draft, dpi=110)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return True


def report(certificate: Mapping[str, Any]) -> str:
    """The certificate for people."""
    names = list(certificate["cycle_ms"])
    lines = [certificate["verdict"], f"  {'ms':<12}" + "".join(f"{name:>10}" for name in names)]
    for part in ("inference", "cycle", "jitter"):
        values = certificate[f"{part}_ms"].values()
        lines.append(f"  {part:<12}" + "".join(f"{'-' if value is None else f'{value:.3f}':>10}" for value in values))
    told = certificate["machine"]
    lines.append(f"  machine      {told['cpu']}, {told['cores']} cores, governor {told['governor']}, {told['kernel']}")
    return "\n".join(lines)
