"""Checkpoints of generators and encoders: our own folders, checked by checksum, and those in the layout of the release."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from drifting_policy.checkpoint import (
    CONFIG,
    WEIGHTS,
    first_line,
    list_checkpoints,
    read_config,
    ready,
    resolve,
    verify,
    write_checkpoint,
)
from drifting_policy.imagenet.autoencoder import MaskedAutoencoder
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.hub import local_folder
from drifting_policy.imagenet.kinds import NETWORKS, Network, blank, kind_of, outline
from drifting_policy.imagenet.release_folder import find_weights, open_release
from drifting_policy.types import CheckpointError


def save_network(
    path: str | Path, network: Network, *, metadata: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> Path:
    """The directory `path`, holding the network, what `metadata` tells about it and, if given, the training `state`.

    It is whole or absent, and `drifting_policy.checkpoint` reads its `config.json` and its state.

    Raises:
        CheckpointError: when the file system refuses (full, read-only); an older checkpoint at `path` stays as it was.
    """
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    return write_checkpoint(
        path, config=describe(network, metadata), write=lambda draft: save_file(weights, draft / WEIGHTS), state=state
    )


def describe(network: Network, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` says of a network: `metadata`, its kind, and the keyword arguments that build it."""
    return {**metadata, "kind": kind_of(network), "recipe": network.recipe}


def load_generator(path: str | Path, *, device: str | torch.device = "cpu") -> ImageGenerator:
    """The generator stored in the directory `path`, on `device`, ready to draw.

    `path` is a checkpoint, a run directory (then its newest checkpoint is taken), a folder in the layout of the release, or the
    id of a released network such as "hf://latent_L_sota".

    Raises:
        CheckpointError: where anything is missing, damaged, of another kind, or does not fit.
        ConfigError: where PyTorch cannot use the device, or a release cannot be downloaded.
    """
    network = load_network(path)
    if not isinstance(network, ImageGenerator):
        raise wrong_kind(path, network, expected="generator")
    return ready(network, device=device)


def load_autoencoder(path: str | Path, *, device: str | torch.device = "cpu") -> MaskedAutoencoder:
    """The masked auto-encoder stored in the directory `path`, on `device`; places and errors are those of `load_generator`."""
    network = load_network(path)
    if not isinstance(network, MaskedAutoencoder):
        raise wrong_kind(path, network, expected="autoencoder")
    return ready(network, device=device)


def load_encoder(path: str | Path, *, device: str | torch.device = "cpu") -> ImageEncoder:
    """The encoder stored in the directory `path`, alone or in its auto-encoder, on `device`, ready to compare images by.

    Places and errors are those of `load_generator`. Of an auto-encoder in the layout of the release nothing else is read.
    """
    network = load_network(path, encoder_only=True)
    if isinstance(network, ImageGenerator):
        raise wrong_kind(path, network, expected="encoder")
    return ready(network.encoder if isinstance(network, MaskedAutoencoder) else network, device=device)


def load_network(path: str | Path, *, encoder_only: bool = False) -> Network:
    """The network stored in the directory `path`, whatever its kind, on the CPU; places are those of `load_generator`.

    With `encoder_only`, decoder and classifier of a released auto-encoder are not read.

    Raises:
        CheckpointError: where anything is missing, damaged, or does not fit; `encoder_only` of a released generator.
        ConfigError: a release that cannot be downloaded.
    """
    folder = local_folder(path)
    if (folder / CONFIG).is_file():
        return load_own(folder)
    if list_checkpoints(folder):
        return load_own(resolve(folder))
    weights = find_weights(folder)
    if weights is None:
        raise CheckpointError(
            f"There is no network in {folder}: neither {CONFIG} nor, in the layout of the release, params_ema/metadata.json."
        )
    return open_release(weights, encoder_only=encoder_only).build()


def load_own(directory: Path) -> Network:
    """The network in a checkpoint directory of ours, on the CPU.

    Raises:
        CheckpointError: where anything is missing or damaged, or the weights do not fit.
    """
    config = read_config(directory)
    if config.get("kind") not in tuple(NETWORKS):
        raise CheckpointError(
            f"{directory} holds no network of the image generator: its kind is {config.get('kind')!r}, "
            f"not one of {', '.join(NETWORKS)}."
        )
    verify(directory, config, WEIGHTS)
    try:
        network = blank(outline(config["kind"], config["recipe"]))
        network.load_state_dict(load_file(directory / WEIGHTS), strict=True, assign=True)
        return network.float()
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{directory} does not describe a network of this version: {first_line(error)}.") from error


def wrong_kind(path: str | Path, network: Network, *, expected: str) -> CheckpointError:
    """The error that says that another network was expected."""
    return CheckpointError(f"{path} holds a network of the kind '{kind_of(network)}'; expected '{expected}'.")
