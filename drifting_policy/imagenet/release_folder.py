"""A folder in the layout of the release: moving averages of weights as msgpack, and JSON that tells whose they are."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifting_policy.checkpoint import first_line
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.kinds import Network, blank, outline
from drifting_policy.imagenet.release import (
    KERNEL_AXES,
    autoencoder_options,
    copy_weights,
    encoder_names,
    encoder_options,
    generator_names,
    generator_options,
)
from drifting_policy.imagenet.weights import StoredArray, WeightFile
from drifting_policy.types import CheckpointError

FILES = {"ema_params.msgpack": "metadata.json", "ema_model.msgpack": "ema_model.metadata.json"}  # the latter of early runs
TRAINING_ONLY = ("decoder", "fc")  # parts of an auto-encoder that its encoder does without
KINDS = {"gen": "generator", "mae": "autoencoder"}
OPTIONS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "generator": generator_options,
    "autoencoder": autoencoder_options,
    "encoder": encoder_options,
}


@dataclass(frozen=True)
class ReleasedNetwork:
    """A network of the release whose weights fit it but are not read yet.

    Attributes:
        outline: The network without memory.
        weights: The released arrays by the names of the release.
        layout: For each of our parameters the released arrays that it consists of; more than one are stacked.
        about: What the release tells about the weights: `step`, `ema_decay`.
    """

    outline: Network
    weights: WeightFile
    layout: dict[str, list[str]]
    about: dict[str, Any]

    def build(self) -> Network:
        """The network with its weights, on the CPU; besides them no more than one array is in memory."""
        network = blank(self.outline)
        copy_weights(network, self.weights, names=released_names(network))
        return network


def find_weights(folder: Path) -> Path | None:
    """The file of weights in `folder` or its `params_ema`; None where there is nothing of the release.

    Raises:
        CheckpointError: nobody tells what network they are of, or there is only a training state, which is not read.
    """
    for place in (folder / "params_ema", folder):
        for weights, metadata in FILES.items():
            if not (place / weights).is_file():
                continue
            if not (place / metadata).is_file():
                raise CheckpointError(
                    f"{place / weights} comes without {metadata}, which tells what network it belongs to; put it beside."
                )
            return place / weights
    if any(path.is_dir() for path in (folder / "checkpoints").glob("checkpoint_*")):
        raise CheckpointError(
            f"{folder / 'checkpoints'} holds training states of the release (Orbax), which are not read: they tell neither the "
            "network nor the moving average of its weights. Give the folder params_ema that the same training writes."
        )
    return None


def open_release(weights: Path, *, encoder_only: bool = False) -> ReleasedNetwork:
    """The network of the file `weights` and the JSON beside it; of an auto-encoder with `encoder_only` the encoder alone.

    Raises:
        CheckpointError: a file is damaged, the weights do not fit the network, or `encoder_only` is asked of a generator.
    """
    metadata = read_metadata(weights.with_name(FILES[weights.name]))
    kind = KINDS[metadata["kind"]]
    if encoder_only and kind == "generator":
        raise CheckpointError(f"{weights.parent} holds a generator; expected an auto-encoder.")
    kind = "encoder" if encoder_only else kind
    network = outline(kind, OPTIONS[kind](metadata["model_config"]))
    released = WeightFile(weights, skip=TRAINING_ONLY if encoder_only else ())
    layout = lay_out(network, released.arrays, file=weights)
    about = {key: metadata[key] for key in ("step", "ema_decay") if isinstance(metadata.get(key), int | float)}
    return ReleasedNetwork(network, released, layout, about)


def read_metadata(file: Path) -> dict[str, Any]:
    """The metadata of a release, with a known `kind` and fields under `model_config`.

    Raises:
        CheckpointError: they are not there, or the file cannot be read.
    """
    try:
        metadata = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({first_line(error)}).") from error
    if not isinstance(metadata, dict) or metadata.get("kind") not in tuple(KINDS):
        kind = metadata.get("kind") if isinstance(metadata, dict) else metadata
        raise CheckpointError(f"{file} must tell the kind of the network, one of {', '.join(KINDS)}; found {str(kind)[:80]!r}.")
    if not isinstance(metadata.get("model_config"), dict):
        raise CheckpointError(f"{file} must tell the sizes of the network under model_config; found none.")
    return metadata


def released_names(network: Network) -> dict[str, str]:
    """Our name of each released parameter of `network`, in the layout of the release."""
    return generator_names(network) if isinstance(network, ImageGenerator) else encoder_names(network)


def released_axes(name: str, axes: int) -> tuple[int, ...]:
    """In which order the axes of the released array `name` stand in our parameter."""
    return KERNEL_AXES.get(axes, tuple(range(axes))) if name.endswith("/kernel") else tuple(range(axes))


def lay_out(network: Network, released: Mapping[str, StoredArray], *, file: Path) -> dict[str, list[str]]:
    """For each parameter of `network` the released arrays that it consists of, in order.

    Raises:
        CheckpointError: an array that is missing, unknown, of another shape, or holds integers.
    """
    names = released_names(network)
    if missing := sorted(set(names) - set(released)):
        raise CheckpointError(f"{file} does not fit the network that its metadata tells: it lacks {missing[:5]}.")
    if unknown := sorted(set(released) - set(names)):
        raise CheckpointError(f"{file} does not fit the network that its metadata tells, which has no {unknown[:5]}.")
    own = dict(network.named_parameters())
    layout: dict[str, list[str]] = {}
    for theirs, name in names.items():
        ours, _, table = name.partition("/")
        stored, expected = released[theirs], tuple(own[ours].shape[1:] if table else own[ours].shape)
        found = tuple(stored.shape[axis] for axis in released_axes(theirs, len(stored.shape)))
        if found != expected or stored.dtype.kind != "f":
            raise CheckpointError(
                f"{file}, entry '{theirs}': expected a floating-point array that becomes {ours} of shape {expected}, "
                f"found {stored.dtype.name} of shape {stored.shape}, which would become {found}."
            )
        layout.setdefault(ours, []).append(theirs)
    return layout
