"""The networks of the image generator by the names that checkpoints give them."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from drifting_policy.checkpoint import first_line
from drifting_policy.imagenet.autoencoder import MaskedAutoencoder
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.types import CheckpointError

Network: TypeAlias = ImageGenerator | MaskedAutoencoder | ImageEncoder

NETWORKS: dict[str, type[Network]] = {
    "generator": ImageGenerator,
    "autoencoder": MaskedAutoencoder,
    "encoder": ImageEncoder,
}


def kind_of(network: Network) -> str:
    """The name of the kind of `network`."""
    return next(kind for kind, network_class in NETWORKS.items() if isinstance(network, network_class))


def outline(kind: str, options: Mapping[str, Any]) -> Network:
    """A network of names and shapes alone, which takes no memory (on PyTorch's "meta" device).

    Args:
        kind: One of NETWORKS.
        options: Keyword arguments of its class.

    Raises:
        CheckpointError: no such network can be built.
    """
    try:
        with torch.device("meta"):
            return NETWORKS[kind](**options)
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, LookupError) as error:
        raise CheckpointError(
            f"No {kind} of this version can be built of {str(options)[:200]}: {first_line(error)}."
        ) from error


def blank(network: Network) -> Network:
    """A network in memory like the outline `network`, to be filled: its weights are of no use.

    Values that follow from the sizes, and so are in no file, are there.
    """
    if list(network.buffers()):
        return type(network)(**network.recipe)
    return network.to_empty(device="cpu")
