"""`python -m drifting_policy.imagenet.sample ckpt=DIR classes=[207,88]`: images drawn by a generator, as one picture."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from drifting_policy import cli
from drifting_policy.imagenet.checkpoints import load_generator
from drifting_policy.imagenet.config import SampleConfig, register
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.sampling import draw_images
from drifting_policy.imagenet.sheet import write_sheet
from drifting_policy.train import choose_device, use_threads
from drifting_policy.types import ConfigError, MissingPackage

LATENT_CHANNELS = 4  # of SD-VAE; images have one or three
LATENT_SCALE = 0.18215  # by which the latents of SD-VAE are multiplied before a generator sees them (Rombach et al. 2022)
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
        ConfigError: a VAE that cannot be found.
        MissingPackage: diffusers is not installed.
    """
    if generator.recipe["out_channels"] != LATENT_CHANNELS:
        return as_pixels, ""
    if vae == NO_VAE:
        return lambda latents: as_pixels(latents[:, :3] / SPREAD), "; not decoded: the first three latent channels as colours"
    network = load_vae(vae, device=generator.positions.device)
    return lambda latents: decode_latents(network, latents), ""


def load_vae(place: str, *, device: torch.device) -> Any:
    """The decoder of latents in the folder `place`, or with that id on the Hugging Face hub.

    Raises:
        ConfigError: there is none.
        MissingPackage: diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingPackage("Decoding latents needs diffusers: pip install 'drifting-policy[imagenet]'.") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of packages that diffusers could use too
            load: Any = AutoencoderKL.from_pretrained
            network = load(place, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ConfigError(
            f"The decoder of latents {place} is no folder of one, nor could it be downloaded ({reason}). Give vae=FOLDER that "
            "holds its config.json and diffusion_pytorch_model.safetensors, or vae=none to see latents as they are."
        ) from error
    return network.to(device).requires_grad_(False).eval()


@torch.no_grad()
def decode_latents(vae: Any, latents: Float[Tensor, "b 4 h w"]) -> UInt8[np.ndarray, "b h2 w2 3"]:
    """Pictures of `latents` in the units of training, which are those of SD-VAE times 0.18215."""
    return as_pixels(vae.decode(latents / LATENT_SCALE).sample)


def as_pixels(images: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """Bytes 0..255 of images in [-1, 1]; what lies outside is clipped."""
    scaled = ((images.float() + 1) / 2).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).movedim(1, -1).cpu().numpy()


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
        draft.unlink(missing_ok=True)
    return file


if __name__ == "__main__":
    register()
    cli.main("imagenet.sample", run)
