"""`python -m drifting_policy.export ckpt=DIR`: the policy as one file that runs without PyTorch, shown to be the same."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy import cli
from drifting_policy.atomic import replace_folder, write_json
from drifting_policy.checkpoint import STATS
from drifting_policy.commands import ExportConfig
from drifting_policy.control.exported_policy import ExportedPolicy
from drifting_policy.control.manifest import Manifest
from drifting_policy.control.onnx_policy import OnnxPolicy
from drifting_policy.eval import BUNDLED, Candidate, load_candidate, stored_demonstrations
from drifting_policy.evaluation import writing_to
from drifting_policy.exporting import FILES, load_program, write_graph
from drifting_policy.parity import RECORDED, TOLERANCE, Parity, compare
from drifting_policy.train import use_threads
from drifting_policy.types import CheckpointError, ConfigError
from drifting_policy.versions import versions

TOLD, PARITY = "policy.json", "parity.json"


def run(config: ExportConfig) -> None:
    """Export one checkpoint, and hold it against the original."""
    if not config.ckpt:
        raise ConfigError("Say what to export: ckpt=RUN_OR_CHECKPOINT_DIRECTORY, or ckpt=bundled.")
    use_threads(1)
    candidate = load_candidate(config.ckpt, task=config.task, device="cpu", sampler=config.sampler.changes)
    out = Path(
        config.out or (f"runs/bundled_{config.format}" if config.ckpt == BUNDLED else candidate.checkpoint / config.format)
    )
    _check_folder(out)
    with writing_to(out), _replacing(out) as draft:
        file = draft / FILES[config.format]
        manifest = write_graph(candidate.policy, file, form=config.format, about=_about(candidate))
        parity = compare(
            candidate.policy,
            _open(file, form=config.format),
            span=_action_span(candidate.checkpoint),
            demonstrations=stored_demonstrations(candidate),
        )
        _check_parity(parity)
        write_json(draft / PARITY, parity.to_dict() | {"versions": versions()})
        write_json(draft / TOLD, json.loads(manifest.to_json()))
        size = file.stat().st_size
    print(report(parity, manifest, name=file.name, size=size))
    print(f"  files        {out}")


def report(parity: Parity, manifest: Manifest, *, name: str, size: int) -> str:
    """What was written, and how far it is from the checkpoint."""
    largest, told = parity.largest, parity.to_dict()
    observations = "recorded and random" if RECORDED in told["observations"] else "random (its data set is not on this machine)"
    return (
        f"  {name:<12} {size / 1e6:.2f} MB, contract {manifest.spec.contract_hash}, "
        f"evaluations {manifest.about['evaluations']}\n"
        f"  parity       {largest['network']:.1e} in network units, {largest['relative']:.1e} of the range of the action, "
        f"{largest['raw']:.1e} in raw units: {told['chunks']} chunks for {observations} observations"
    )


def _open(file: Path, *, form: str) -> ExportedPolicy:
    return OnnxPolicy(file) if form == "onnx" else load_program(file)


def _check_parity(parity: Parity) -> None:
    """Refuse an export that is another policy."""
    if not parity.holds:
        worst = max(parity.differences, key=lambda row: (np.isnan(row.network), row.network))
        raise ConfigError(
            f"Nothing was written, for the exported policy differs from the checkpoint by {parity.largest['network']:.1e} in "
            f"network units and {parity.largest['relative']:.1e} of the range of the action, above {TOLERANCE:.0e}, "
            f"most for {worst.observations} observations in batches of {worst.batch} with "
            f"{worst.noise} noise and {worst.prefix} committed commands."
        )


def _about(candidate: Candidate) -> dict[str, Any]:
    """Where the policy comes from."""
    source = {**candidate.about, "sha256": candidate.checksum, "task": candidate.task.name, "data": candidate.data}
    return {"source": source, "versions": versions()}


def _action_span(checkpoint: Path) -> np.ndarray:
    """The demonstrated range (d,) of each element of the action."""
    try:
        told = json.loads((checkpoint / STATS).read_text())["action"]
        return np.asarray(told["max"], np.float64) - np.asarray(told["min"], np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / STATS} cannot be read ({error}); use another checkpoint.") from error


def _check_folder(out: Path) -> None:
    """Refuse to replace anything but an earlier export."""
    if out.suffix in {Path(name).suffix for name in FILES.values()}:
        raise ConfigError(f"An export is a folder; give out={out.with_suffix('')}, which will hold the policy and its report.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give out=FOLDER.")
    if out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - {*FILES.values(), TOLD, PARITY})):
        raise ConfigError(f"{out} holds other things than an export ({others[0]}); give another out=FOLDER.")


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when everything is written, so that nobody ever sees half an export."""
    draft = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        replace_folder(draft, out.absolute())
    finally:
        shutil.rmtree(draft, ignore_errors=True)


if __name__ == "__main__":
    cli.main("export", run)
