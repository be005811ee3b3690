"""OnnxPolicy: an exported policy on a computer without PyTorch. NumPy and ONNX Runtime only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from drifting_policy.control.exported_policy import ACTIONS, ExportedPolicy, input_names
from drifting_policy.control.manifest import KEY, Manifest
from drifting_policy.types import CheckpointError, ConfigError, MissingPackage

CPU = "CPUExecutionProvider"


@final
class OnnxPolicy(ExportedPolicy):
    """A policy that `python -m drifting_policy.export format=onnx` wrote. Nothing in its file is ever unpickled."""

    def __init__(self, path: str | Path, *, threads: int = 1, providers: Sequence[str] | None = None) -> None:
        """The policy in the file `path`, or in policy.onnx of the folder `path`.

        Args:
            path: The file or the folder of an export.
            threads: CPU threads of one evaluation; more than one spin between evaluations.
            providers: Execution providers of ONNX Runtime, the preferred one first; None for the CPU.

        Raises:
            CheckpointError: where the file is missing, damaged, edited, of another format, or contradicts itself.
            ConfigError: on an impossible number of threads, or a provider that ONNX Runtime does not have here.
            MissingPackage: ONNX Runtime is not installed.
        """
        if threads < 1:
            raise ConfigError(f"threads must be at least 1; got {threads}.")
        file = Path(path) / "policy.onnx" if Path(path).is_dir() else Path(path)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror}). Give the file that the export wrote.") from error
        self._session = _open(content, place=file, threads=threads, providers=providers)
        manifest = Manifest.from_json(self._session.get_modelmeta().custom_metadata_map.get(KEY), place=file)
        manifest.verify(content, place=file)
        names = input_names(manifest.spec, max_prefix=manifest.max_prefix)
        if sorted(node.name for node in self._session.get_inputs()) != sorted(names):
            raise CheckpointError(f"{file} asks for other inputs than {names}. Export it again.")
        super().__init__(manifest)

    def _evaluate(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        # Without IO binding: for the bundled policy it saves 1 µs of 93, and would forbid two threads at once.
        chunk: np.ndarray = self._session.run([ACTIONS], dict(inputs))[0]
        return chunk


def _open(content: bytes, *, place: Path, threads: int, providers: Sequence[str] | None) -> Any:
    """A session of ONNX Runtime for the model `content`."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states
    except ImportError as error:
        raise MissingPackage("A policy in ONNX needs onnxruntime: pip install 'drifting-policy[onnx]'.") from error
    wanted, present = [CPU] if providers is None else list(providers), onnxruntime.get_available_providers()
    if not wanted or not set(wanted) <= set(present):
        raise ConfigError(f"ONNX Runtime has the providers {present} here; it was asked for {wanted}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    failures = tuple(kind for kind in vars(states).values() if isinstance(kind, type) and issubclass(kind, Exception))
    try:
        return onnxruntime.InferenceSession(content, options, providers=wanted)
    except (*failures, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"{place} cannot be loaded by ONNX Runtime ({reason}). Export the policy again.") from error
