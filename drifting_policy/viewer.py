"""A recorded run as a file of the Rerun viewer (https://rerun.io): observations, commands, statuses and plans over time."""

from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy.control.status import Status
from drifting_policy.run_log import Log
from drifting_policy.types import MissingPackage


def write_rerun(log: Log, path: str | Path) -> Path:
    """The file at `path`, which `rerun PATH` opens.

    Times are seconds since the first control step. A plan is drawn at the time it came, one line per action dimension.

    Raises:
        MissingPackage: rerun-sdk is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise MissingPackage("The viewer needs Rerun: pip install 'drifting-policy[viewer]'.") from error
    stream = rerun.RecordingStream("drifting_policy")
    stream.save(str(path))
    acted, observed, planned = (log.streams[name] for name in ("acted", "observed", "planned"))
    start = float(acted["t"][0]) if len(acted) else 0.0
    for row in observed:
        stream.set_time("time", duration=float(row["t"]) - start)
        for key, array in log.spec.observations.items():
            value = row[f"obs {key}"]
            shown: Any = rerun.Image(value) if array.is_image and value.ndim == 3 else rerun.Scalars(value.ravel())
            stream.log(f"observation/{key}", shown)
    for row in acted:
        stream.set_time("time", duration=float(row["t"]) - start)
        stream.log("action", rerun.Scalars(row["action"]))
        stream.log("status", rerun.TextLog(Status(row["status"]).name))
    steps = np.arange(log.spec.pred_horizon) - log.spec.first_executed
    for row in planned[~planned["failed"]]:
        stream.set_time("time", duration=float(row["end"]) - start)
        lines = [np.stack([steps, course], axis=1) for course in row["chunk"].T]
        stream.log("plan", rerun.LineStrips2D(lines))
        stream.log("inference_ms", rerun.Scalars(1000 * (row["end"] - row["begin"])))
    stream.flush()
    return Path(path)
