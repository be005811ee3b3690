"""`python -m drifting_policy.imagenet.cache src=IMAGES dst=FOLDER size=256 [vae=NAME]`: images or latents for training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy import cli
from drifting_policy.imagenet.chunked import describe_group
from drifting_policy.imagenet.config import CacheConfig, register
from drifting_policy.imagenet.images import to_floats
from drifting_policy.imagenet.latents import encode_images, image_generator, latent_shape, load_vae, vae_identity
from drifting_policy.imagenet.manifest import Recipe
from drifting_policy.imagenet.sources import NATIVE_SIZES, ImageSource, open_sources
from drifting_policy.imagenet.store import Encode, is_cache, open_split, unfinished, write_split
from drifting_policy.train import choose_device
from drifting_policy.types import ConfigError, DatasetError


def run(config: CacheConfig) -> int:
    """Build a cache, or go on with one that was interrupted; with `verify`, check all of it.

    Raises:
        ConfigError: settings that are missing or make no sense.
        DatasetError: images that cannot be used, or a cache that is damaged or was begun otherwise.
        CheckpointError: the autoencoder cannot be loaded.
    """
    if not config.dst:
        raise ConfigError("Say where the cache is: dst=FOLDER.")
    if not config.src and not config.verify:
        raise ConfigError(
            "Say what to cache: src=cifar10, src=digits, or src=FOLDER_OR_ZIP of images; or check one: verify=true."
        )
    place = Path(config.dst)
    if config.src:
        build(config, place)
    elif not is_cache(place):
        raise DatasetError(f"There is no cache at {place}.")
    for split in ("train", "test"):
        if (place / split).is_dir():
            manifest, _ = open_split(place, split, verify=config.verify)
            checked = "every checksum is right" if config.verify else "complete"
            shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in manifest.recipe.rows.items())
            print(f"{place}/{split}: {manifest.count} images, {shapes}, {manifest.recipe.dtype}, {checked}")
    return 0


def build(config: CacheConfig, place: Path) -> None:
    """Write the cache of all splits of config.src at `place`, where it appears when it is complete.

    Raises:
        ConfigError: settings that make no sense for these images.
        DatasetError: images that cannot be used, other settings than it was begun with, or a full disk.
    """
    with open_sources(config.src) as sources:
        vae = load_vae(config.vae, choose_device(config.device)) if config.vae else None
        recipes = {split: make_recipe(config, source, split, vae) for split, source in sources.items()}
        if place.exists():
            check_equal(place, recipes)
            return
        draft = unfinished(place)
        for split, source in sources.items():
            encode = pixels if vae is None else latents_of(vae, recipes[split], batch_size=config.batch_size)
            write_split(draft / split, source, recipes[split], encode, vae_name=config.vae)
    try:
        describe_group(draft)
        draft.rename(place)
    except OSError as error:
        raise DatasetError(f"{draft} is complete but could not be renamed to {place} ({error}); do so by hand.") from error


def make_recipe(config: CacheConfig, source: ImageSource, split: str, vae: Any) -> Recipe:
    """How one split is to be cached.

    Raises:
        ConfigError: no size, or one that does not suit the autoencoder, or grey images for one of colours.
    """
    size = config.size or NATIVE_SIZES.get(config.src)
    if size is None:
        raise ConfigError("Say how large the images are to be, in pixels: size=256.")
    rows: dict[str, list[int]] = {"pixels": [size, size, source.channels]}
    if vae is not None:
        if source.channels != vae.config.in_channels:
            raise ConfigError(f"The autoencoder takes {vae.config.in_channels} channels; {config.src} has {source.channels}.")
        rows = {name: [*latent_shape(vae, size)] for name in (("latents", "mirrored") if config.flips else ("latents",))}
    return Recipe(
        split=split,
        source=source.digest,
        images=len(source.names),
        size=size,
        rows=rows,
        dtype="uint8" if vae is None else config.dtype,
        vae=None if vae is None else vae_identity(vae),
        seed=None if vae is None else config.seed,
        chunk=config.chunk,
    )


def check_equal(place: Path, recipes: Mapping[str, Recipe]) -> None:
    """Refuse to take what is at `place` for the cache of these recipes if it is not.

    Raises:
        DatasetError: it is no cache, or one of other images, or made otherwise.
    """
    if not is_cache(place):
        raise DatasetError(f"{place} exists and is no cache; choose another dst.")
    for split, recipe in recipes.items():
        manifest, _ = open_split(place, split)
        if difference := manifest.recipe.difference(recipe):
            raise DatasetError(f"{place} was built with other settings or other images: {difference}. Choose another dst.")


def pixels(images: np.ndarray, positions: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of a cache of pixels: the images uint8 "b h w c" as they are."""
    return {"pixels": images}


def latents_of(vae: Any, recipe: Recipe, *, batch_size: int) -> Encode:
    """A function to the arrays of a cache of latents: "latents" and perhaps "mirrored", those of the images turned around.

    The noise of an image is drawn from `recipe.seed` and its position, first for the image, then for its mirror image.
    """
    seed = recipe.seed or 0

    def encode(images: np.ndarray, positions: Sequence[int]) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in recipe.rows}
        for first in range(0, len(images), batch_size):
            batch = to_floats(images[first : first + batch_size]).to(vae.device)
            generators = [image_generator(seed, position) for position in positions[first : first + batch_size]]
            for name, part in parts.items():
                seen = batch.flip(-1) if name == "mirrored" else batch
                part.append(encode_images(vae, seen, generators=generators).cpu().numpy().astype(recipe.dtype))
        latents = {name: np.concatenate(part) for name, part in parts.items()}
        if not all(np.isfinite(values).all() for values in latents.values()):
            raise DatasetError(
                "The autoencoder returned infinite numbers or none at all; its weights are damaged, or dtype=float32 is needed."
            )
        return latents

    return encode


if __name__ == "__main__":
    register()
    cli.main("imagenet.cache", run)
