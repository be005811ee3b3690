"""Exported policies: normalisers, encoder, head and sampler of a policy as one graph, for ONNX Runtime or torch.export."""

import contextlib
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import ExportedProgram

from drifting_policy.control.exported_policy import ACTIONS, COMMITTED, NOISE, OBSERVATION, PREFIX, ExportedPolicy, input_names
from drifting_policy.control.manifest import KEY, Manifest
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import CheckpointError, ConfigError, MissingPackage

FILES = {"onnx": "policy.onnx", "torch_export": "policy.pt2"}
# ONNX Runtime 1.23.2, the last with wheels for Python 3.10, reads both.
OPSET, IR_VERSION = 18, 10
MOST_EVALUATIONS = 20  # every evaluation is a copy of the head in the graph
MANIFEST = "manifest.json"  # within a program of torch.export
EXAMPLE_BATCH = 2  # 0 and 1 would be taken for constants


@final
class Graph(nn.Module):
    """A policy as a function of tensors in a fixed order, which is what exporters take."""

    def __init__(self, policy: DriftingPolicy) -> None:
        """The graph of `policy`."""
        super().__init__()
        self.policy = policy
        self.names = input_names(policy.spec, max_prefix=policy.max_prefix)

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b t d"]:
        """Action chunks in raw units for the inputs `names`."""
        given, policy = dict(zip(self.names, inputs, strict=True)), self.policy
        normalize = policy.normalizer.normalize
        tokens = policy.encoder({key: normalize(key, given[f"{OBSERVATION}{key}"]) for key in policy.spec.observations})
        if policy.max_prefix:
            tokens = policy.condition(tokens, normalize("action", given[PREFIX]), given[COMMITTED])
        return policy.decode(tokens, given[NOISE] * policy.noise_scale)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes and types."""
        spec, batch = self.policy.spec, EXAMPLE_BATCH
        given = {
            f"{OBSERVATION}{key}": torch.zeros(
                (batch, spec.obs_horizon, *array.shape), dtype=torch.uint8 if array.is_image else torch.float32
            )
            for key, array in spec.observations.items()
        }
        given[NOISE] = torch.zeros((batch, *spec.sample_shape))
        given[PREFIX] = torch.zeros((batch, self.policy.max_prefix, *spec.action.shape))
        given[COMMITTED] = torch.zeros(batch, dtype=torch.int64)
        return tuple(given[name] for name in self.names)


@final
class ProgramPolicy(ExportedPolicy):
    """A policy that `python -m drifting_policy.export format=torch_export` wrote, evaluated by PyTorch."""

    def __init__(self, manifest: Manifest, program: ExportedProgram) -> None:
        """The policy that `program` computes."""
        super().__init__(manifest)
        self._names = input_names(manifest.spec, max_prefix=manifest.max_prefix)
        self._module = program.module()

    @torch.inference_mode()
    def _evaluate(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        # Copies: torch takes no read-only arrays.
        chunk: np.ndarray = self._module(*(torch.from_numpy(inputs[name].copy()) for name in self._names)).numpy()
        return chunk


def load_program(path: str | Path) -> ProgramPolicy:
    """The policy in the file `path` of an export with format=torch_export, or in the folder of one.

    Load your own files only: the format belongs to PyTorch, whose loader is not made for files of strangers.

    Raises:
        CheckpointError: where the file is missing or damaged, or holds another program.
    """
    file = Path(path) / FILES["torch_export"] if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise CheckpointError(f"There is no exported program at {file}. Give the file that the export wrote.")
    extra = {MANIFEST: ""}
    try:
        with quiet():
            program = torch.export.load(file, extra_files=extra)
    except (zipfile.BadZipFile, RuntimeError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"{file} cannot be loaded by torch.export ({reason}). Export the policy again.") from error
    return ProgramPolicy(Manifest.from_json(extra[MANIFEST], place=file), program)


def write_graph(policy: DriftingPolicy, file: Path, *, form: str, about: Mapping[str, Any]) -> Manifest:
    """The manifest of the graph of `policy`, which is written to `file` in the format `form`.

    Raises:
        ConfigError: an unknown format, or a sampler that no graph can hold.
        MissingPackage: a package of the export is not installed.
    """
    if form not in FILES:
        raise ConfigError(f"Unknown format '{form}'; choose one of {', '.join(FILES)}.")
    _check_sampler(policy)
    said = {"format": form, "noise_scale": policy.noise_scale, "clip": policy.clip, "evaluations": policy.evaluations, **about}
    if form == "onnx":
        return _write_onnx(policy, file, said)
    manifest = Manifest.of(b"", spec=policy.spec, max_prefix=policy.max_prefix, about=said)
    with quiet():
        torch.export.save(program_of(policy), file, extra_files={MANIFEST: manifest.to_json()})
    return manifest


def program_of(policy: DriftingPolicy) -> ExportedProgram:
    """The program of a policy in use, for any batch of at least one."""
    graph = Graph(policy).eval()
    batch = torch.export.Dim("batch", min=1)
    with quiet(), torch.no_grad():
        return torch.export.export(
            graph, graph.example(), dynamic_shapes=(tuple({0: batch} for _ in graph.names),), strict=False
        )


def _write_onnx(policy: DriftingPolicy, file: Path, said: Mapping[str, Any]) -> Manifest:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise MissingPackage("format=onnx needs onnx and onnxscript: pip install 'drifting-policy[export]'.") from error
    packages = {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__, "onnxruntime": version("onnxruntime")}
    with quiet():
        exported = torch.onnx.export(
            program_of(policy),
            input_names=input_names(policy.spec, max_prefix=policy.max_prefix),
            output_names=[ACTIONS],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    model.ir_version = IR_VERSION
    _name_batch_axis(model.graph)
    for node in model.graph.node:  # where PyTorch found each operation: longer than the graph itself, and full of paths
        del node.metadata_props[:]
    onnx.checker.check_model(model)
    graph = model.SerializeToString(deterministic=True)
    manifest = Manifest.of(
        graph,
        spec=policy.spec,
        max_prefix=policy.max_prefix,
        about={**said, "opset": OPSET, "ir_version": IR_VERSION, "packages": packages},
    )
    # The bytes of two messages in succession are those of both merged, so the graph can be told from what is said about it.
    told = onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key=KEY, value=manifest.to_json())])
    file.write_bytes(graph + told.SerializeToString(deterministic=True))
    return manifest


def _name_batch_axis(graph: Any) -> None:
    """PyTorch calls the axis by a symbol of its own."""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _check_sampler(policy: DriftingPolicy) -> None:
    sampler = policy.recipe["sampler"]
    if sampler.get("scheduler") == "ddpm":
        raise ConfigError(
            "DDPM adds noise on its way that no graph can compute (it follows from a hash of the first noise); "
            f"export with sampler.scheduler=ddim sampler.steps={min(10, policy.evaluations)}."
        )
    if policy.evaluations > MOST_EVALUATIONS:
        raise ConfigError(
            f"The sampler '{sampler['name']}' evaluates the head {policy.evaluations} times, and a graph holds a copy each; "
            f"export with sampler.steps={MOST_EVALUATIONS} or fewer."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what PyTorch's exporter and onnxscript tell on their way about themselves; their errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
