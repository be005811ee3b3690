"""The drifting field as a one-step image generator (arXiv 2602.04770, section 5): the second application of `drift`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drifting_policy.imagenet.checkpoints import load_encoder, load_generator

__all__ = ["load_encoder", "load_generator"]


def __getattr__(name: str) -> object:
    """The public object `name`, imported when first used: the schemas of the commands must not pay for torch."""
    if name in __all__:
        return getattr(import_module("drifting_policy.imagenet.checkpoints"), name)
    raise AttributeError(f"module 'drifting_policy.imagenet' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
