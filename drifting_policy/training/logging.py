"""Log: metrics as JSON lines, on a progress bar and, if wanted, in TensorBoard."""

import json
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from drifting_policy.atomic import write_text
from drifting_policy.types import ConfigError

ON_BAR = {"loss": "loss", "drift_rms_0.2": "drift", "sibling_spread": "spread", "val_action_error": "val_error"}
ON_BAR |= {"val_spread_to_data": "spread/data"}


class Log:
    """Writes each metric line to `metrics.jsonl`; the bar shows speed, time left and the metrics that mean something.

    `earlier` holds the lines that the run had written when it was resumed.
    """

    def __init__(self, run_dir: Path, *, steps: int, start: int, tensorboard: bool, quiet: bool = False) -> None:
        """Continue at step `start` of `steps`: lines of later steps, left by an interrupted run, are dropped.

        Raises:
            ConfigError: where TensorBoard is wanted but not installed.
        """
        self.board = _tensorboard(run_dir) if tensorboard else None  # first: it may refuse
        self.file = run_dir / "metrics.jsonl"
        self.earlier = self._keep_until(start)
        self.quiet = quiet
        self.stream = self.file.open("a")
        self.bar = tqdm(total=steps, initial=start, unit="it", dynamic_ncols=True, disable=quiet, smoothing=0.05)
        self.shown: dict[str, str] = {}

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        self.bar.update(step - self.bar.n)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` of `step` everywhere.

        Raises:
            ConfigError: where the file system refuses.
        """
        # NaN is no JSON; a metric that is not a number is recorded as null.
        line = {name: (float(value) if math.isfinite(value) else None) for name, value in metrics.items()}
        self._write_line({"step": step, **line})
        self.shown |= {label: f"{metrics[name]:.3g}" for name, label in ON_BAR.items() if name in metrics}
        self.bar.set_postfix(self.shown, refresh=False)
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, step)

    def warn(self, step: int, name: str, sentence: str) -> None:
        """Record the alarm `name` of `step`, and print its sentence above the bar.

        Raises:
            ConfigError: where the file system refuses.
        """
        self._write_line({"step": step, "alarm": name, "message": sentence})
        if not self.quiet:
            tqdm.write(f"warning: {sentence}", file=sys.stderr)

    def close(self) -> None:
        """Finish file, bar and board."""
        self.bar.close()
        with suppress(OSError):  # a full disk was reported when the line was written
            self.stream.close()
        if self.board is not None:
            self.board.close()

    def _write_line(self, line: Mapping[str, Any]) -> None:
        try:
            self.stream.write(json.dumps(line) + "\n")
            self.stream.flush()
        except OSError as error:
            raise ConfigError(
                f"{self.file} could not be written ({error}). Free some space and go on with resume=true; the checkpoints are "
                "untouched."
            ) from error

    def _keep_until(self, step: int) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        kept = []
        for line in self.file.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the torn last line of a killed run
        write_text(self.file, "".join(line + "\n" for line in kept))
        return [json.loads(line) for line in kept]


def read_alarms(metrics: Path) -> list[dict[str, Any]]:
    """Step, name and sentence of every alarm in a `metrics.jsonl`."""
    return [line for line in map(json.loads, metrics.read_text().splitlines()) if "alarm" in line]


def _tensorboard(run_dir: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("trainer.tensorboard=true needs TensorBoard: pip install 'drifting-policy[tensorboard]'.") from error
    return SummaryWriter(str(run_dir / "tensorboard"))
