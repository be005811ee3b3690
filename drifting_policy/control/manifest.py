"""Manifest: what a file with an exported policy says about itself. Standard library only."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, final

from drifting_policy.types import CheckpointError, PolicySpec

FORMAT_VERSION = 1
KEY = "drifting_policy"  # of the metadata of an ONNX file
CHECKSUM = "manifest_sha256"


@final
@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contract of an exported policy, and where it comes from.

    Attributes:
        spec: what the policy sees and commands.
        max_prefix: the most committed commands that it can continue.
        graph_bytes: how many bytes at the beginning of the file are the graph.
        graph_sha256: their checksum.
        about: noise scale, opset, versions and source, for people and JSON; nothing at run time depends on it.
    """

    spec: PolicySpec
    max_prefix: int
    graph_bytes: int
    graph_sha256: str
    about: Mapping[str, Any]

    @staticmethod
    def of(graph: bytes, *, spec: PolicySpec, max_prefix: int, about: Mapping[str, Any]) -> "Manifest":
        """The manifest of a file that begins with `graph`."""
        return Manifest(spec, max_prefix, len(graph), hashlib.sha256(graph).hexdigest(), about)

    def to_json(self) -> str:
        """The manifest as JSON with a checksum of what it says."""
        said = {
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "contract_hash": self.spec.contract_hash,
            "max_prefix": self.max_prefix,
            "graph_bytes": self.graph_bytes,
            "graph_sha256": self.graph_sha256,
            "about": dict(self.about),
        }
        return json.dumps(said | {CHECKSUM: _checksum(said)}, indent=1)

    @staticmethod
    def from_json(text: str | None, *, place: object) -> "Manifest":
        """The manifest that `to_json` wrote; `place` names its file in errors.

        Raises:
            CheckpointError: where it is missing, damaged, of another version, or contradicts itself.
        """
        if not text:
            raise CheckpointError(
                f"{place} does not say what its policy sees and commands; export it with python -m drifting_policy.export."
            )
        try:
            said = json.loads(text)
            version, checksum = said["format_version"], said.pop(CHECKSUM, None)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{place} is damaged: its manifest cannot be read. Export the policy again.") from error
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{place} has format version {version}; this version of the package reads {FORMAT_VERSION}. Export it again."
            )
        if checksum != _checksum(said):
            raise CheckpointError(
                f"{place} is damaged or was edited: the checksum of its manifest does not fit. Export it again."
            )
        try:
            spec = PolicySpec.from_dict(said["spec"])
            manifest = Manifest(
                spec, int(said["max_prefix"]), int(said["graph_bytes"]), str(said["graph_sha256"]), dict(said["about"])
            )
            contract = said["contract_hash"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{place} does not describe a policy of this version ({error}). Export it again.") from error
        if contract != spec.contract_hash:
            raise CheckpointError(
                f"{place} belongs to the contract {contract}, but its specification to {spec.contract_hash}. Export it again."
            )
        return manifest

    def verify(self, file: bytes, *, place: object) -> None:
        """Refuse a file whose graph is not the one that was exported.

        Raises:
            CheckpointError: where the checksum does not fit.
        """
        if hashlib.sha256(file[: self.graph_bytes]).hexdigest() != self.graph_sha256:
            raise CheckpointError(f"{place} is damaged or was edited: the checksum of its graph does not fit. Export it again.")


def _checksum(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
