"""`python -m drifting_policy.imagenet.convert src=DIR|hf://ID dst=DIR`: a released network as a checkpoint of ours.

The weights pass through memory one array at a time, whatever the size of the file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drifting_policy import cli
from drifting_policy.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from drifting_policy.imagenet.checkpoints import describe
from drifting_policy.imagenet.config import ConvertConfig, register
from drifting_policy.imagenet.hub import local_folder
from drifting_policy.imagenet.kinds import kind_of
from drifting_policy.imagenet.release_folder import ReleasedNetwork, find_weights, open_release, released_axes
from drifting_policy.imagenet.tensor_file import write_tensors
from drifting_policy.types import CheckpointError, ConfigError


def run(config: ConvertConfig) -> int:
    """Convert one network."""
    if not config.src or not config.dst:
        raise ConfigError(
            "Say what to convert and where to: src=FOLDER, or a release such as src=hf://latent_L_sota, and dst=FOLDER."
        )
    target = Path(config.dst)
    check_target(target, overwrite=config.overwrite)
    folder = local_folder(config.src)
    weights = find_weights(folder)
    if weights is None:
        raise CheckpointError(f"There is nothing of the release in {folder}: it has neither params_ema nor ema_params.msgpack.")
    released = open_release(weights, encoder_only=config.encoder_only)
    convert(released, target, source=config.src)
    count = sum(parameter.numel() for parameter in released.outline.parameters())
    print(
        f"  {kind_of(released.outline):<12} {count / 1e6:.1f} million parameters, step {released.about.get('step', 'unknown')}"
    )
    print(f"  files        {target}")
    return 0


def convert(released: ReleasedNetwork, target: Path, *, source: str) -> None:
    """Write the checkpoint `target`, whole or not at all; `source` is kept in its `config.json`.

    Raises:
        CheckpointError: the weights cannot be read, or the checkpoint cannot be written.
    """
    network = released.outline
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    total = sum(stored.size for stored in released.weights.arrays.values())
    with tqdm(total=total, unit="B", unit_scale=True, leave=False) as bar:

        def values(name: str) -> Iterator[np.ndarray]:
            for theirs in released.layout[name]:
                array = released.weights[theirs]
                yield array.transpose(released_axes(theirs, array.ndim))
                bar.update(array.nbytes)

        write_checkpoint(
            target,
            config=describe(network, {"source": {"release": source, **released.about}}),
            write=lambda draft: write_tensors(draft / WEIGHTS, shapes, values),
        )


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but a checkpoint, and that only if `overwrite`.

    Raises:
        ConfigError: something is there already.
    """
    if target.exists() and not (target / CONFIG).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} is no checkpoint and will not be replaced; give another dst.")
    if (target / CONFIG).is_file() and not overwrite:
        raise ConfigError(f"{target} exists already; give another dst, or overwrite=true.")


if __name__ == "__main__":
    register()
    cli.main("imagenet.convert", run)
