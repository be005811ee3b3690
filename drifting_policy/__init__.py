"""Robot policies that draw a whole action chunk in one network evaluation, trained by drifting."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drifting_policy.checkpoint import load_policy
    from drifting_policy.chunking import ChunkExecutor
    from drifting_policy.control.controller import Controller
    from drifting_policy.control.onnx_policy import OnnxPolicy
    from drifting_policy.recorder import RunRecorder
    from drifting_policy.types import Policy, PolicySpec

__all__ = ["ChunkExecutor", "Controller", "OnnxPolicy", "Policy", "PolicySpec", "RunRecorder", "__version__", "load_policy"]

# Names are imported when first used: a robot that only executes chunks must not pay for torch.
_HOMES = {
    "load_policy": "checkpoint",
    "ChunkExecutor": "chunking",
    "Controller": "control.controller",
    "RunRecorder": "recorder",
    "OnnxPolicy": "control.onnx_policy",
    "Policy": "types",
    "PolicySpec": "types",
}


def __getattr__(name: str) -> object:
    """The public object `name`."""
    if name == "__version__":
        return version("drifting-policy")
    if name in _HOMES:
        return getattr(import_module(f"drifting_policy.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'drifting_policy' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
