"""Checkpoints: directories of safetensors and JSON that are either whole or absent. Nothing in them is ever unpickled."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from drifting_policy.atomic import replace_folder
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import CheckpointError, ConfigError, MissingPackage, PolicySpec, Stats

FORMAT_VERSION = 1
WEIGHTS, CONFIG, STATS, STATE = "model.safetensors", "config.json", "stats.json", "state.pt"
CHECKSUM = "config_sha256"

Network = TypeVar("Network", bound=nn.Module)


def save_policy(
    path: str | Path,
    policy: DriftingPolicy,
    *,
    metadata: Mapping[str, Any],
    stats: Mapping[str, Stats],
    state: Mapping[str, Any] | None = None,
) -> Path:
    """The directory `path`, holding the policy and, if given, the training `state` to resume from.

    All files are written beside and the directory is renamed into place, so nobody ever reads half a checkpoint.

    Raises:
        CheckpointError: when the file system refuses (full, read-only); an older checkpoint at `path` stays as it was.
    """
    config = {
        "spec": policy.spec.to_dict(),
        "contract_hash": policy.spec.contract_hash,
        "policy": policy.recipe,
        **metadata,
    }

    def write(draft: Path) -> None:
        save_file({name: value.contiguous() for name, value in policy.state_dict().items()}, draft / WEIGHTS)
        (draft / STATS).write_text(json.dumps({key: value.to_dict() for key, value in stats.items()}, indent=1) + "\n")

    return write_checkpoint(path, config=config, write=write, state=state)


def write_checkpoint(
    path: str | Path, *, config: Mapping[str, Any], write: Callable[[Path], None], state: Mapping[str, Any] | None = None
) -> Path:
    """The directory `path`, holding what `write` puts into it, `config` with checksums and, if given, the training `state`.

    All files are written beside and the directory is renamed into place, so nobody ever reads half a checkpoint.

    Raises:
        CheckpointError: when the file system refuses (full, read-only); an older checkpoint at `path` stays as it was.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write(draft)
        if state is not None:
            torch.save(dict(state), draft / STATE)
        checksums = {name: file_sha256(draft / name) for name in (WEIGHTS, STATE) if (draft / name).exists()}
        told = {"format_version": FORMAT_VERSION, **config, "sha256": checksums}
        (draft / CONFIG).write_text(json.dumps(told | {CHECKSUM: _content_sha256(told)}, indent=1) + "\n")
        replace_folder(draft, target)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(
            f"The checkpoint {target} could not be written ({first_line(error)}). Free some space or choose another place; "
            "earlier checkpoints are untouched."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def load_policy(path: str | Path, *, device: str | torch.device = "cpu") -> DriftingPolicy:
    """The policy stored in the directory `path`, on `device`, ready to act.

    `path` is a checkpoint or a run directory (then its newest checkpoint is taken).

    Raises:
        CheckpointError: where anything is missing, damaged or of another format.
        ConfigError: where PyTorch cannot use the device, or a package is missing that the policy's sampler needs.
    """
    directory = resolve(path)
    config = read_config(directory)
    verify(directory, config, WEIGHTS)
    try:
        policy = DriftingPolicy(PolicySpec.from_dict(config["spec"]), **config["policy"])
        policy.load_state_dict(load_file(directory / WEIGHTS), strict=True)
    except MissingPackage:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{directory} does not describe a policy of this version: {first_line(error)}.") from error
    return ready(policy, device=device)


def ready(network: Network, *, device: str | torch.device) -> Network:
    """`network` on `device`, for use and not for training.

    Raises:
        ConfigError: where PyTorch cannot use the device.
    """
    try:
        return network.to(device).requires_grad_(False).eval()
    except (RuntimeError, AssertionError, ImportError) as error:  # PyTorch built without it, no driver, no such device
        raise ConfigError(f"device={device} cannot be used here ({first_line(error)}); try device=cpu.") from error


def load_state(path: str | Path) -> dict[str, Any]:
    """The training state in the checkpoint directory `path`; tensors and plain values only.

    Raises:
        CheckpointError: where the state is missing or damaged.
    """
    directory = Path(path)
    verify(directory, read_config(directory), STATE)
    try:
        state: dict[str, Any] = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own text advises to run what is in the file
        raise CheckpointError(f"{directory / STATE} holds more than tensors and plain values. Do not use it.") from error
    except (RuntimeError, EOFError) as error:
        raise CheckpointError(f"{directory / STATE} is damaged: {first_line(error)}. Resume from another one.") from error
    return state


def read_config(directory: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint's config.json.

    Raises:
        CheckpointError: where it is missing, unreadable or of another format version.
    """
    file = Path(directory) / CONFIG
    try:
        config = json.loads(file.read_text())
        version = config["format_version"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} is no checkpoint: it has no {CONFIG}.") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} is damaged ({first_line(error)}); use another checkpoint.") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{file} has format version {version}; this version of the package reads {FORMAT_VERSION}.")
    if config.pop(CHECKSUM, None) != _content_sha256(config):
        raise CheckpointError(f"{file} is damaged or was edited: its checksum does not fit. Use another checkpoint.")
    return dict(config)


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in (Path(run_dir) / "checkpoints").glob("step_*") if path.is_dir())


def checkpoint_path(run_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of `step` lies in a run directory."""
    return Path(run_dir) / "checkpoints" / f"step_{step:08d}"


def resolve(path: str | Path) -> Path:
    """The checkpoint directory that `path` means: itself, or the newest checkpoint of the run directory `path`.

    Raises:
        CheckpointError: where there is neither.
    """
    directory = Path(path)
    if (directory / "checkpoints").is_dir():
        checkpoints = list_checkpoints(directory)
        if not checkpoints:
            raise CheckpointError(f"The run {directory} has no checkpoint yet.")
        return checkpoints[-1]
    if not directory.is_dir():
        raise CheckpointError(f"There is no checkpoint at {directory}. Give a run directory or one of its checkpoints.")
    return directory


def resumable(run_dir: str | Path) -> Path:
    """The newest checkpoint of a run whose training state is whole; damaged ones are passed over.

    Raises:
        CheckpointError: where there is none; the sentence says what was wrong with each.
    """
    reasons = []
    for path in reversed(list_checkpoints(run_dir)):
        try:
            config = read_config(path)
            verify(path, config, WEIGHTS)
            verify(path, config, STATE)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        return path
    told = " ".join(reasons) or "No checkpoint was saved."
    raise CheckpointError(f"The run {run_dir} cannot be resumed. {told} Start anew with overwrite=true.")


def drop_state(path: str | Path) -> None:
    """Remove the training state of a checkpoint, which remains a complete policy."""
    (Path(path) / STATE).unlink(missing_ok=True)


def verify(directory: Path, config: Mapping[str, Any], name: str) -> None:
    """Hold the file `name` of a checkpoint against its checksum in `config`.

    Raises:
        CheckpointError: where the file is missing, cannot be read or is damaged.
    """
    file, expected = directory / name, config.get("sha256", {}).get(name)
    if not file.is_file() or expected is None:
        raise CheckpointError(f"The checkpoint {directory} has no {name}.")
    try:
        found = file_sha256(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error}). Use another checkpoint.") from error
    if found != expected:
        raise CheckpointError(f"{file} is damaged: its checksum is not the one in {CONFIG}. Use another checkpoint.")


def _content_sha256(config: Mapping[str, Any]) -> str:
    """Checksum of what the JSON says, however it is laid out."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(config)), sort_keys=True).encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """Checksum of a file, of which a part at a time is in memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """What an error says, in one line without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
