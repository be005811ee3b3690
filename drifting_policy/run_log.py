"""Log: what a `RunRecorder` stored, read again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from drifting_policy.control.limits import Limits
from drifting_policy.control.planner import Planner
from drifting_policy.data.replay_buffer import read_attributes, read_extra
from drifting_policy.recorder import FORMAT, stream_types
from drifting_policy.types import DatasetError, PolicySpec


@final
@dataclasses.dataclass(frozen=True)
class Log:
    """A recorded run: the contract, the controller's settings, and the records of each stream (see `recorder.stream_types`)."""

    spec: PolicySpec
    options: dict[str, Any]
    max_prefix: int
    streams: dict[str, np.ndarray]

    def planner(self) -> Planner:
        """How its plans were drawn."""
        options = {name: self.options[name] for name in ("noise", "candidates", "rule")}
        rate = self.options["control_hz"] or self.spec.control_hz
        return Planner(**options, limits=limits_of(self.options["limits"]), control_hz=rate)


def open_log(path: str | Path) -> Log:
    """The run that a `RunRecorder` stored at `path`.

    Raises:
        DatasetError: no store, or one that is not the recording of a run.
    """
    place = Path(path)
    about = read_attributes(place).get("run", {})
    if about.get("format") != FORMAT:
        raise DatasetError(f"{place} is not the recording of a controller's run ({FORMAT}); it says {about.get('format')}.")
    spec, stored = PolicySpec.from_dict(about["spec"]), read_extra(place, "log")
    streams = {}
    for name, dtype in stream_types(spec, candidates=about["controller"]["candidates"], max_prefix=about["max_prefix"]).items():
        rows = np.zeros(len(stored.get(f"{name}/order", ())), dtype)
        for field in dtype.names or ():
            if len(rows):
                rows[field] = stored[f"{name}/{field}"]
        streams[name] = rows
    return Log(spec, about["controller"], about["max_prefix"], streams)


def limits_of(values: Mapping[str, Any] | None) -> Limits | None:
    """The limits that `as_json` wrote."""
    return None if values is None else Limits(**values)
