"""The released networks by their ids, downloaded from the Hugging Face hub when they are asked for."""

from pathlib import Path

from drifting_policy.types import ConfigError, MissingPackage

SCHEME, REPOSITORY = "hf://", "Goodeat/drifting"
GENERATORS = ("latent_L_sota", "latent_B_sota", "pixel_L_sota", "pixel_B_sota", "ablation")
AUTOENCODERS = ("mae_latent_640", "mae_pixel_640", "mae_latent_256")
FOLDERS = {name: f"models/gen/jax/{name}" for name in GENERATORS} | {name: f"models/mae/jax/{name}" for name in AUTOENCODERS}
FILES = ("metadata.json", "ema_params.msgpack")


def local_folder(place: str | Path) -> Path:
    """The folder `place`, or that of a released network such as "hf://latent_L_sota", which is downloaded if need be.

    Raises:
        ConfigError: there is no such release, or it cannot be downloaded.
        MissingPackage: huggingface_hub is not installed.
    """
    if not str(place).startswith(SCHEME):
        return Path(place)
    name = str(place).removeprefix(SCHEME)
    if name not in FOLDERS:
        raise ConfigError(f"Unknown release '{place}'; choose one of {', '.join(SCHEME + known for known in FOLDERS)}.")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingPackage("Downloading a release needs huggingface_hub: pip install 'drifting-policy[imagenet]'.") from error
    broken = getattr(errors, "HTTPError", OSError)  # of the network; in old versions it is an OSError
    try:
        files = [Path(huggingface_hub.hf_hub_download(REPOSITORY, f"{FOLDERS[name]}/{file}")) for file in FILES]
    except (OSError, ValueError, RuntimeError, broken, errors.EntryNotFoundError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"{place} could not be downloaded ({reason}). Connect to the network and try again, or give a folder that holds "
            f"{' and '.join(FILES)} of https://huggingface.co/{REPOSITORY}/tree/main/{FOLDERS[name]}."
        ) from error
    return files[0].parent
