"""The demonstrations of Relay Policy Learning (Gupta et al. 2019) for the Franka Kitchen, in both public forms.

As they were recorded: `*.mjl`, binary logs of MuJoCo, 500 records per second. A file holds seven little-endian int32 (the
counts nq, nv, nu, of mocap bodies, of sensor values, of user values, and the length of the name that follows) and then float32
records: time, qpos, qvel, ctrl, position and quaternion of each mocap body, sensor values, user values.

As Behavior Transformers and Diffusion Policy publish them: the arrays `observations_seq.npy` (30 positions and their goals),
`actions_seq.npy` and `existence_mask.npy`, padded to the longest episode, time first or episodes first.
"""

import difflib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drifting_policy.data.replay_buffer import ReplayBuffer, concatenate
from drifting_policy.types import DatasetError

HEADER = struct.Struct("<7i")
SIZES = {"nq": 30, "nv": 29, "nu": 9}
JOINTS = 9  # of the robot; the first of the positions, speeds and commands
EVERY = 40  # records per control step
STEP_SECONDS = 0.08
FASTEST = 2.0  # rad/s, m/s; an action of 1
ALMOST_ONE = 0.999  # where Relay Policy Learning clips actions
ARRAYS = ("observations_seq", "actions_seq", "existence_mask")
FROM_LOGS = ("action", "ctrl", "qpos", "state")
FROM_ARRAYS = ("action", "goal", "qpos")


def is_kitchen(path: str | Path) -> bool:
    """Whether `path` looks like demonstrations that `open_kitchen` reads: one log, or a folder with logs or with the arrays."""
    place = Path(path)
    if place.is_dir():
        return _has_arrays(place) or any(place.glob("**/*.mjl"))
    return place.suffix == ".mjl" and place.is_file()


def open_kitchen(path: str | Path, keys: Sequence[str] | None = None) -> ReplayBuffer:
    """The demonstrations at `path`, one `.mjl` log or a folder, with `keys` or all of them; each log is one episode.

    Logs give `state` (59,) and `qpos` (30,) as the environment observes them, `ctrl` (9,), the commanded joint positions, and
    `action` (9,), the joint speeds in -1..1 that lead there in one step. The arrays give `qpos`, `goal` (30,) and `action`, no
    speeds. Everything is float32. A folder that holds both is read from its logs.

    Raises:
        DatasetError: names the file, the key and the step at fault.
    """
    place = Path(path)
    if not place.exists():
        raise DatasetError(f"There is no data set at {place}.")
    logs = sorted(place.glob("**/*.mjl")) if place.is_dir() else [place]
    if not logs and not _has_arrays(place):
        raise DatasetError(f"{place} holds neither *.mjl logs nor {ARRAYS[0]}.npy; name the folder that does.")
    offered = FROM_LOGS if logs else FROM_ARRAYS
    wanted = list(offered if keys is None else keys)
    for key in wanted:
        if key not in offered:
            close = difflib.get_close_matches(key, offered, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise DatasetError(f"{place} has no '{key}'; it has {list(offered)}.{hint}")
    if logs:
        episodes = (read_log(log) for log in logs)
        arrays, ends = concatenate({key: episode[key] for key in wanted} for episode in episodes)
    else:
        arrays, ends = _read_arrays(place)
    return ReplayBuffer({key: arrays[key] for key in wanted}, ends, str(place))


def read_log(path: Path) -> dict[str, np.ndarray]:
    """`state` "n 59", `qpos` "n 30", `ctrl` "n 9" and `action` "n 9" of every 40th record of one log, float32.

    An action is the speed from the recorded to the commanded joint position in one control step, as a share of 2 rad/s, as
    `parse_demos.py` of Relay Policy Learning computes it (from the simulated position, which the log does not hold).

    Raises:
        DatasetError: the log is cut off, or not one of the kitchen.
    """
    records, sizes = _records(path)
    nq, nv, nu = sizes
    qpos, qvel, ctrl = np.split(records[:, 1 : 1 + nq + nv + nu], [nq, nq + nv], axis=1)
    action = np.clip((ctrl - qpos[:, :JOINTS]) / (STEP_SECONDS * FASTEST), -ALMOST_ONE, ALMOST_ONE)
    state = np.concatenate([qpos[:, :JOINTS], qvel[:, :JOINTS], qpos[:, JOINTS:], qvel[:, JOINTS:]], axis=1)
    return {"action": action, "ctrl": ctrl.copy(), "qpos": qpos.copy(), "state": state}


def _records(path: Path) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Every 40th record "n size" of the log, and the numbers of positions, speeds and commands in it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error}).") from error
    if len(content) < HEADER.size:
        raise DatasetError(f"{path} is no MuJoCo log: it has {len(content)} bytes, fewer than its header; copy it again.")
    nq, nv, nu, bodies, sensors, users, name = HEADER.unpack_from(content)
    if (nq, nv, nu) != tuple(SIZES.values()) or min(bodies, sensors, users, name) < 0:
        raise DatasetError(
            f"{path} is no MuJoCo log of the Franka Kitchen: its header says nq={nq}, nv={nv}, nu={nu}, {bodies} mocap bodies, "
            f"{sensors} sensor and {users} user values, a name of {name} bytes; nq, nv, nu must be {list(SIZES.values())}."
        )
    size = 1 + nq + nv + nu + 7 * bodies + sensors + users
    body = len(content) - HEADER.size - name
    if body < 0 or body % (4 * size):
        raise DatasetError(
            f"{path} is cut off: behind the header lie {body} bytes, no whole number of records of {4 * size} bytes; "
            "copy it again."
        )
    if body == 0:
        raise DatasetError(f"{path} holds no records; leave it out.")
    records = np.frombuffer(content, "<f4", offset=HEADER.size + name).reshape(-1, size)
    return records[::EVERY].astype(np.float32), (nq, nv, nu)


def _has_arrays(place: Path) -> bool:
    return (place / f"{ARRAYS[0]}.npy").is_file()


def _read_arrays(place: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All arrays of the published form, without the padding, and the ends of the episodes."""
    observations, actions, mask = (_load(place / f"{name}.npy") for name in ARRAYS)
    if mask.ndim != 2 or observations.shape != (*mask.shape, 60) or actions.shape != (*mask.shape, 9):
        raise DatasetError(
            f"{place}: the arrays must have shapes (T, N, 60), (T, N, 9) and (T, N) in the order {list(ARRAYS)}; "
            f"they have {observations.shape}, {actions.shape} and {mask.shape}."
        )
    if not np.isin(mask, (0, 1)).all():
        raise DatasetError(f"{place}: existence_mask.npy must hold 0 and 1 only.")
    if _time_axis(mask.astype(bool), place) == 0:
        observations, actions, mask = observations.swapaxes(0, 1), actions.swapaxes(0, 1), mask.T
    present = mask.astype(bool)
    steps = observations[present].astype(np.float32)
    arrays = {"action": actions[present].astype(np.float32), "goal": steps[:, 30:], "qpos": steps[:, :30]}
    return arrays, np.cumsum(present.sum(axis=1)).astype(np.int64)


def _time_axis(present: np.ndarray, place: Path) -> int:
    """The axis along which the steps of every episode come first and its padding after them: 0 or 1."""
    fitting = [axis for axis in (0, 1) if _is_padded(present if axis == 1 else present.T)]
    if len(fitting) != 1:
        why = "either axis could be" if fitting else "along neither axis do the steps come first and the padding after them:"
        raise DatasetError(f"{place}: existence_mask.npy does not tell which axis is time; {why} {present.shape}.")
    return fitting[0]


def _is_padded(present: np.ndarray) -> bool:
    return bool(present[:, :1].all() and (present[:, 1:] <= present[:, :-1]).all())


def _load(file: Path) -> np.ndarray:
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DatasetError(f"{file} is no readable NumPy array ({type(error).__name__}: {reason}).") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or values.size == 0:
        raise DatasetError(
            f"{file} must hold one array of numbers; it holds {getattr(values, 'dtype', type(values).__name__)}."
        )
    return values
