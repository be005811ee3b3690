"""Images to latents and back by the autoencoder of Stable Diffusion, through diffusers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from drifting_policy.imagenet.images import to_bytes
from drifting_policy.types import CheckpointError, ConfigError, MissingPackage

SCALE = 0.18215  # of stored latents: about one over the deviation of those of Stable Diffusion


def load_vae(name: str | Path, device: torch.device | str = "cpu") -> Any:
    """diffusers' AutoencoderKL of that name on the Hugging Face Hub, or in that folder: float32, frozen, ready to encode.

    Raises:
        CheckpointError: there is none, it cannot be had without a network, or its weights are damaged or not all there.
        MissingPackage: diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL

        loader: Any = AutoencoderKL
    except ImportError as error:
        raise MissingPackage("Latents need diffusers: pip install 'drifting-policy[imagenet]'.") from error
    local = Path(name).expanduser().is_dir()
    if not local and (str(name).count("/") != 1 or str(name).startswith((".", "~", "/"))):
        raise CheckpointError(f"There is no folder {name} with an autoencoder; on the Hub it would be called OWNER/NAME.")
    options: dict[str, Any] = {"use_safetensors": True, "low_cpu_mem_usage": False, "torch_dtype": torch.float32}
    try:
        place = str(Path(name).expanduser()) if local else str(name)
        vae, report = loader.from_pretrained(place, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        advice = (
            "It must hold config.json and diffusion_pytorch_model.safetensors of an AutoencoderKL."
            if local
            else "Without a network, give the path of a folder with its config.json and diffusion_pytorch_model.safetensors."
        )
        raise CheckpointError(f"The autoencoder {name} could not be loaded ({reason}). {advice}") from error
    if odd := {kind: keys for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if (keys := report[kind])}:
        told = "; ".join(f"{kind.replace('_', ' ')} {keys[:3]}" for kind, keys in odd.items())
        raise CheckpointError(f"The weights of the autoencoder {name} do not fit its configuration ({told}).")
    return vae.to(device).requires_grad_(False).eval()


def vae_identity(vae: Any) -> str:
    """Checksum of the configuration and the weights of an autoencoder: what tells whether latents are its own.

    Settings that its file does not name are left out, for another version of diffusers may know more of them.
    """
    unnamed = {*vae.config.get("_use_default_values", ())}
    config = {key: value for key, value in vae.config.items() if not key.startswith("_") and key not in unnamed}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def latent_shape(vae: Any, size: int) -> tuple[int, int, int]:
    """(c, h, w) of the latent of an image of `size` by `size` pixels.

    Raises:
        ConfigError: the autoencoder cannot halve the image as often as it has levels.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if size % factor:
        raise ConfigError(f"size must be a multiple of {factor} for this autoencoder; got {size}.")
    return vae.config.latent_channels, size // factor, size // factor


def image_generator(seed: int, position: int) -> torch.Generator:
    """The random numbers of the image at `position` of a data set, whatever batch it is in."""
    key = hashlib.sha256(f"latent {seed} {position}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))


@torch.no_grad()
def encode_images(
    vae: Any, images: Float[Tensor, "b c h w"], *, generators: Sequence[torch.Generator]
) -> Float[Tensor, "b e h2 w2"]:
    """A sample of the latents of each image, times SCALE, float32, on the device of the images.

    Args:
        vae: As `load_vae` returns it.
        images: In [-1, 1], on the device of the autoencoder.
        generators: On the CPU, one for each image; several may be the same one. Their noise is the same on every device.
    """
    posterior = vae.encode(images).latent_dist
    noise = [torch.randn(posterior.mean.shape[1:], generator=generator) for generator in generators]
    return (posterior.mean + posterior.std * torch.stack(noise).to(images.device)) * SCALE


@torch.no_grad()
def decode_latents(vae: Any, latents: Float[Tensor, "b e h2 w2"]) -> UInt8[np.ndarray, "b h w c"]:
    """The images of latents that `encode_images` or a generator made, as bytes; the latents on the autoencoder's device."""
    return to_bytes(vae.decode(latents / SCALE).sample)
