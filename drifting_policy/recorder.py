"""RunRecorder: what a controller saw, planned and did, written beside the loop; afterwards a data set to train on."""

import dataclasses
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np

from drifting_policy.atomic import write_json
from drifting_policy.control.status import Status
from drifting_policy.data.replay_buffer import EPISODE_ENDS, write_arrays
from drifting_policy.types import ConfigError, DatasetError, PolicySpec
from drifting_policy.versions import versions

FORMAT = "drifting_policy.run/1"
PAGE_BYTES, PAGE_ROWS, PAGES = 1 << 22, 256, 8  # of memory that one stream fills before it is written, and how often
JOIN_SECONDS = 10.0
MOVING = (Status.OK, Status.LIMITED, Status.LATE, Status.HOLD)


def stream_types(spec: PolicySpec, *, candidates: int, max_prefix: int) -> dict[str, np.dtype]:
    """The record of each stream of a run; `order` counts the events of all streams together."""
    (t, d), order = spec.sample_shape, ("order", np.int64)
    observed: list[Any] = [(f"obs {key}", array.dtype, array.shape) for key, array in spec.observations.items()]
    planned: list[Any] = [("plan", np.int64), ("t_obs", float), ("begin", float), ("end", float), ("spread", float)]
    planned += [("failed", bool), ("noisy", bool), ("prefix_steps", np.int64), ("prefix", float, (max(max_prefix, 1), d))]
    planned += [("noise", np.float32, (candidates, t, d)), ("chunk", float, (t, d))]
    return {
        "began": np.dtype([order, ("seed", np.uint64)]),
        "observed": np.dtype([order, ("t", float), *observed]),
        "planned": np.dtype([order, *planned]),
        "acted": np.dtype([order, ("t", float), ("status", np.int64), ("action", float, (d,))]),
    }


@final
class RunRecorder:
    """Records a `Controller`: `Controller(policy, recorder=RunRecorder("run.zarr"), ...)`; use it in a with statement.

    The loop only copies into memory that is there already; a thread writes it to a draft beside `path`. Closing makes the
    draft one zarr store, whole or absent: the data set of the steps (see `steps`), and below log/ everything that happened,
    from which `playback` repeats the run. A draft that a crash left behind becomes a store by `finish`.

    Args:
        path: of the store; must not exist.

    Raises:
        DatasetError: there is something at `path` or its draft already, or the folder cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._draft = draft_of(self.path)
        self._streams: dict[str, Stream] = {}
        self._order = 0

    def __enter__(self) -> "RunRecorder":
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def attached(self, spec: PolicySpec, options: Mapping[str, Any], *, max_prefix: int) -> None:
        """Begin the draft."""
        if self._streams:
            raise ConfigError("A recorder records one controller; make a new one, with another path, for the next.")
        if self.path.exists() or self._draft.exists():
            found = self.path if self.path.exists() else self._draft
            raise DatasetError(f"{found} is there already; choose another path, or remove it.")
        about = {
            "format": FORMAT,
            "spec": spec.to_dict(),
            "controller": {name: as_json(value) for name, value in options.items()},
            "max_prefix": max_prefix,
            "versions": versions(),
        }
        types = stream_types(spec, candidates=options["candidates"], max_prefix=max_prefix)
        try:
            self._draft.mkdir(parents=True)
            write_json(self._draft / "about.json", about)
            self._streams = {name: Stream(self._draft / name, dtype) for name, dtype in types.items()}
        except OSError as error:
            raise DatasetError(f"The run cannot be recorded at {self.path} ({error}).") from error

    def began(self, seed: int) -> None:
        """An episode begins."""
        self._next("began")["seed"] = seed

    def observed(self, t_obs: float, obs: Mapping[str, np.ndarray]) -> None:
        """An observation was accepted."""
        row = self._next("observed")
        row["t"] = t_obs
        for key, value in obs.items():
            row[f"obs {key}"] = value

    def planned(
        self,
        plan: int,
        t_obs: float,
        t_begin: float,
        t_end: float,
        noise: np.ndarray | None,
        prefix: np.ndarray | None,
        chunk: np.ndarray | None,
        spread: float,
    ) -> None:
        """A plan has come."""
        row = self._next("planned")
        row["plan"], row["t_obs"], row["begin"], row["end"], row["spread"] = plan, t_obs, t_begin, t_end, spread
        row["failed"], row["noisy"] = chunk is None, noise is not None
        row["chunk"], row["noise"] = 0.0 if chunk is None else chunk, 0.0 if noise is None else noise
        row["prefix_steps"], row["prefix"] = 0 if prefix is None else len(prefix), 0.0
        if prefix is not None:
            row["prefix"][: len(prefix)] = prefix

    def acted(self, t: float, action: np.ndarray, status: Status) -> None:
        """A command was given out."""
        row = self._next("acted")
        row["t"], row["status"], row["action"] = t, int(status), action

    def _next(self, name: str) -> Any:
        row = self._streams[name].next()
        row["order"] = self._order
        self._order += 1
        return row

    def close(self) -> None:
        """Write what is left and make the store; a recorder that was never used leaves nothing.

        Raises:
            DatasetError: the disk refused; the draft is kept.
        """
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.close()
        if streams:
            finish(self._draft)


@final
class Stream:
    """Records of one kind, on their way to a file.

    Args:
        path: of the file.
        dtype: of a record.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._rows = max(1, min(PAGE_ROWS, PAGE_BYTES // dtype.itemsize))
        self._free = deque(np.zeros(self._rows, dtype) for _ in range(PAGES))
        self._page, self._used = self._free.popleft(), 0
        self._full: deque[tuple[np.ndarray, int]] = deque()
        self._wake = threading.Semaphore(0)
        self._closing, self._error = False, ""
        self._file: BinaryIO = path.open("wb")
        self._thread = threading.Thread(target=self._write, name=f"recorder {path.name}", daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """The next record, to be filled in.

        Raises:
            OSError: the disk refuses, or is so much slower than the loop that there is no memory left.
        """
        if self._error:
            raise OSError(self._error)
        if self._used == self._rows:
            if not self._free:
                raise OSError("the disk is too slow for what is recorded")
            self._full.append((self._page, self._used))
            self._page, self._used = self._free.popleft(), 0
            self._wake.release()
        self._used += 1
        return self._page[self._used - 1]

    def _write(self) -> None:
        while self._wake.acquire() and not (self._closing and not self._full):
            page, used = self._full.popleft()
            if not self._error:
                try:
                    self._file.write(page[:used].tobytes())
                    self._file.flush()
                except OSError as error:
                    self._error = str(error)
            self._free.append(page)

    def close(self) -> None:
        """Write what is left.

        Raises:
            DatasetError: the disk refused.
        """
        self._full.append((self._page, self._used))
        self._closing = True
        self._wake.release()  # for the page
        self._wake.release()  # for the end
        self._thread.join(JOIN_SECONDS)
        self._file.close()
        if self._error or self._thread.is_alive():
            raise DatasetError(f"The recording is not complete ({self._error or 'the disk does not answer'}).")


def draft_of(path: Path) -> Path:
    """Where a recording lies until it is closed."""
    return path.with_name(f".{path.name}.draft")


def finish(draft: Path) -> Path:
    """The store made of a draft, which is removed. Without a step to learn from it holds the log alone.

    Raises:
        DatasetError: no draft, or a damaged one, which is kept.
    """
    try:
        about = json.loads((draft / "about.json").read_text())
        spec = PolicySpec.from_dict(about["spec"])
        types = stream_types(spec, candidates=about["controller"]["candidates"], max_prefix=about["max_prefix"])
        log = {name: read_records(draft / name, dtype) for name, dtype in types.items()}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{draft} is not a recording that can be finished ({type(error).__name__}: {error}).") from error
    data, ends = steps(log, spec)
    arrays = {f"data/{key}": values for key, values in data.items()} | {EPISODE_ENDS: ends} if len(ends) else {}
    arrays |= {
        f"log/{name}/{field}": rows[field] for name, rows in log.items() if len(rows) for field in rows.dtype.names or ()
    }
    target = draft.with_name(draft.name.removeprefix(".").removesuffix(".draft"))
    write_arrays(target, arrays, attributes={"run": about})
    shutil.rmtree(draft)
    return target


def read_records(path: Path, dtype: np.dtype) -> np.ndarray:
    """The whole records of a stream's file; what a crash cut off is left out."""
    count = os.path.getsize(path) // dtype.itemsize
    return np.fromfile(path, dtype, count)


def steps(log: Mapping[str, np.ndarray], spec: PolicySpec) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arrays and episode ends of the control steps at which the robot was commanded: each command with the newest observation.

    An episode begins with the first command and ends where the robot stopped, or where the next episode begins. While it held,
    its steps stay: what is learnt from them is to hold.
    """
    acted, observed = log["acted"], log["observed"]
    episode = np.searchsorted(log["began"]["order"], acted["order"])
    newest = np.searchsorted(observed["order"], acted["order"]) - 1
    moving = np.isin(acted["status"], MOVING) & np.isfinite(acted["action"]).all(axis=1) & (newest >= 0)
    started = np.zeros(len(acted), bool)
    for number in np.unique(episode):
        rows = np.flatnonzero(episode == number)
        planned = np.flatnonzero(np.isin(acted["status"][rows], MOVING[:3]))
        started[rows[planned[0] :] if len(planned) else rows[:0]] = True
    kept = np.flatnonzero(moving & started)
    last = np.append(episode[kept][1:] != episode[kept][:-1], [True] * min(len(kept), 1)).astype(bool)
    arrays = {key: observed[f"obs {key}"][newest[kept]] for key in spec.observations}
    return arrays | {"action": acted["action"][kept].astype(np.float32)}, np.flatnonzero(last) + 1


def as_json(value: Any) -> Any:
    """A setting of a controller as JSON has it; infinity stays infinity, which Python reads back."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
