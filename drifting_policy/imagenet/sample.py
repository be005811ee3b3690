"""`python -m drifting_policy.imagenet.sample ckpt=DIR classes=[207,88]`: images drawn by a generator, as one picture."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from drifting_policy import cli
from drifting_policy.imagenet.checkpoints import load_generator
from drifting_policy.imagenet.config import SampleConfig, register
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.images import to_bytes
from drifting_policy.imagenet.latents import decode_latents, load_vae
from drifting_policy.imagenet.sampling import draw_images
from drifting_policy.imagenet.sheet import write_sheet
from drifting_policy.train import choose_device, use_threads
from drifting_policy.types import CheckpointError, ConfigError

LATENT_CHANNELS = 4  # of SD-VAE; images have one or three
SPREAD = 3.0  # standard deviations of a latent that are shown where it is not decoded
FIRST = 10  # classes that are drawn unless others are named
WIDEST = 16  # images in a row
NO_VAE = "none"


def run(config: SampleConfig) -> int:
    """Draw the images, and write them."""
    if not config.ckpt:
        raise ConfigError("Say whose images: ckpt=FOLDER, or a release such as ckpt=hf://latent_L_sota.")
    use_threads(config.threads)
    generator = load_generator(config.ckpt, device=choose_device(config.device))
    classes = choose_classes(config.classes, generator)
    decode, told = choose_decoder(config.vae, generator)
    places = [(label, index) for label in classes for index in range(config.n)]
    pictures, samples = [], []
    with tqdm(total=len(places), unit="image", leave=False) as bar:
        for images in draw_images(generator, places, cfg_scale=config.cfg, seed=config.seed, batch=config.batch):
            pictures.append(decode(images))
            if config.arrays:
                samples.append(images.cpu().numpy())
            bar.update(len(images))
    columns = min(config.n, WIDEST)
    sheet = write_sheet(config.out, in_rows(np.concatenate(pictures), count=config.n, columns=columns), columns=columns)
    print(
        f"  images       {config.n} of each class {', '.join(map(str, classes))}; "
        f"guidance {config.cfg}, seed {config.seed}{told}"
    )
    print(f"  sheet        {sheet}")
    if config.arrays:
        numbers: dict[str, Any] = {"labels": [label for label, _ in places], "indices": [index for _, index in places]}
        numbers |= {"cfg": config.cfg, "seed": config.seed}
        print(f"  samples      {write_arrays(sheet.with_suffix('.npz'), {'samples': np.concatenate(samples)} | numbers)}")
    return 0


def choose_classes(classes: Sequence[int] | None, generator: ImageGenerator) -> list[int]:
    """The classes to draw; None is the first ten.

    Raises:
        ConfigError: a class that the generator does not know.
    """
    chosen = list(range(min(FIRST, generator.classes))) if classes is None else list(classes)
    if unknown := [label for label in chosen if not 0 <= label < generator.classes]:
        raise ConfigError(f"classes must lie in [0, {generator.classes}) with this generator; got {unknown}.")
    return chosen


def choose_decoder(vae: str, generator: ImageGenerator) -> tuple[Callable[[Tensor], np.ndarray], str]:
    """What turns samples "b c h w" into pictures uint8 "b h w c", and what must be said of it.

    Raises:
        CheckpointError: a VAE that is not there, or that cannot be loaded.
        MissingPackage: diffusers is not installed.
    """
    if generator.recipe["out_channels"] != LATENT_CHANNELS:
        return to_bytes, ""
    if vae == NO_VAE:
        return lambda latents: to_bytes(latents[:, :3] / SPREAD), "; not decoded: the first three latent channels as colours"
    try:
        network = load_vae(vae, generator.positions.device)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Or see the latents as they are, by vae=none.") from error
    return lambda latents: decode_latents(network, latents), ""


def in_rows(images: UInt8[np.ndarray, "n h w c"], *, count: int, columns: int) -> UInt8[np.ndarray, "n2 h w c"]:
    """The `count` images of each class, filled up with white ones where they do not fill rows of `columns`."""
    classes = images.reshape(-1, count, *images.shape[1:])
    full = np.pad(classes, [(0, 0), (0, -count % columns), (0, 0), (0, 0), (0, 0)], constant_values=255)
    return full.reshape(-1, *images.shape[1:])


def write_arrays(file: Path, arrays: dict[str, Any]) -> Path:
    """The file `file` of NumPy's format .npz, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as stream:
            np.savez(stream, **arrays)
        draft.replace(file)
    except OSError as error:
        raise ConfigError(f"The samples {file} could not be written ({error.strerror or error}).") from error
    finally:
        if draft.exists():
            draft.unlink()
    return file


if __name__ == "__main__":
    register()
    cli.main("imagenet.sample", run)
