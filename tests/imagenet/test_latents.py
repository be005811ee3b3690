"""Latents against the distribution that diffusers gives, independent of batches, and bound to their autoencoder."""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from drifting_policy.imagenet import images as image_sets
from drifting_policy.imagenet.cache import run
from drifting_policy.imagenet.chunked import ChunkedArray
from drifting_policy.imagenet.config import CacheConfig, register
from drifting_policy.imagenet.images import open_images, to_floats
from drifting_policy.imagenet.latents import (
    SCALE,
    decode_latents,
    encode_images,
    image_generator,
    latent_shape,
    load_vae,
    vae_identity,
)
from drifting_policy.types import CheckpointError, ConfigError, DatasetError, MissingPackage

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny autoencoders with random weights, which halve an image once and take three channels, or one."""
    register()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    made = []
    for seed, channels in ((0, 3), (1, 3), (2, 1)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            vae = diffusers.AutoencoderKL(
                in_channels=channels,
                out_channels=channels,
                down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2,
                block_out_channels=[8, 8],
                norm_num_groups=4,
                layers_per_block=1,
                latent_channels=4,
                sample_size=16,
            )
        made.append(tmp_path_factory.mktemp("vae"))
        vae.save_pretrained(made[-1])
    return made


@pytest.fixture(scope="module")
def vae(folders: list[Path]) -> Any:
    return load_vae(folders[0])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of noise in two classes."""
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    for i in range(10):
        (root / f"c{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"c{i % 2}" / f"{i}.png")
    return root


def build(source: Path | str, place: Path, vae: Path, **changes: Any) -> Path:
    settings = {"src": str(source), "dst": str(place), "vae": str(vae), "size": 8, "chunk": 4, "batch_size": 3}
    assert run(CacheConfig(**(settings | changes))) == 0
    return place


def generators(seed: int, count: int) -> Sequence[torch.Generator]:
    return [image_generator(seed, position) for position in range(count)]


def some_images(count: int = 5) -> torch.Tensor:
    return to_floats(np.random.default_rng(2).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def test_latents_are_samples_of_the_posterior_times_the_scale(vae: Any) -> None:
    posterior, images = vae.encode(some_images()).latent_dist, some_images()
    noise = torch.stack([torch.randn(4, 4, 4, generator=image_generator(3, i)) for i in range(5)])
    latents = encode_images(vae, images, generators=generators(3, 5))
    assert torch.allclose(latents, (posterior.mean + posterior.logvar.mul(0.5).exp() * noise) * SCALE, atol=1e-6)
    assert latents.dtype == torch.float32
    assert latents.shape[1:] == latent_shape(vae, 8)
    many = torch.stack([encode_images(vae, images[:1], generators=[image_generator(9, i)])[0] for i in range(600)])
    assert torch.allclose(many.mean(0), posterior.mean[0] * SCALE, atol=5 * SCALE * float(posterior.std.max()) / 600**0.5)
    assert torch.allclose(many.std(0), posterior.std[0] * SCALE, rtol=0.2)


def test_an_image_has_its_latent_in_whatever_batch(vae: Any) -> None:
    whole = encode_images(vae, some_images(), generators=generators(0, 5))
    alone = [encode_images(vae, some_images()[i : i + 1], generators=[image_generator(0, i)]) for i in (3, 0, 4)]
    assert torch.allclose(torch.cat(alone), whole[[3, 0, 4]], atol=1e-6)
    assert not torch.allclose(encode_images(vae, some_images(), generators=generators(1, 5)), whole, atol=1e-2)
    with pytest.raises(RuntimeError):
        encode_images(vae, some_images(), generators=generators(0, 4))


def test_decoding_undoes_the_scale_and_rounds_to_bytes(vae: Any) -> None:
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    bytes_ = decode_latents(vae, latents * SCALE)
    expected = ((vae.decode(latents).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert bytes_.shape == (3, 8, 8, 3)
    assert np.abs(bytes_.astype(int) - expected.numpy()).max() <= 1
    assert len(np.unique(bytes_)) > 20


def test_an_autoencoder_that_can_reconstruct_gives_its_images_back() -> None:
    """Not a trained one: its parts are replaced by functions that are each other's inverse."""

    class Exact:
        def encode(self, images: torch.Tensor) -> Any:
            mean = torch.cat([images, images.mean(1, keepdim=True)], dim=1)[..., ::2, ::2]
            posterior = type("Posterior", (), {"mean": mean, "std": torch.zeros_like(mean)})
            return type("Output", (), {"latent_dist": posterior})

        def decode(self, latents: torch.Tensor) -> Any:
            sample = latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)
            return type("Output", (), {"sample": sample})

    coarse = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8).repeat(2, 1).repeat(2, 2)
    latents = encode_images(Exact(), to_floats(coarse), generators=generators(0, 2))
    assert np.array_equal(decode_latents(Exact(), latents), coarse)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_cache_holds_the_latents_of_each_image_and_of_its_mirror_image(
    dtype: str, vae: Any, folders: list[Path], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = open_images(tree, size=8)
    place = build(tree, tmp_path / "cache", folders[0], dtype=dtype, seed=7)
    found = open_images(place, vae=vae_identity(vae), verify=True)
    assert (found.kind, found.vae, found.image_shape) == ("latents", vae_identity(vae), (4, 4, 4))
    assert found.images.dtype == dtype
    assert np.array_equal(found.labels, pixels.labels)
    rows, flip = [9, 2, 2, 0], torch.tensor([False, True, False, True])
    values, _ = found.batch(rows, flip=flip)
    for row, turned, value in zip(rows, flip, values, strict=True):
        generator, image = image_generator(7, row), pixels.batch([row])[0]
        straight = encode_images(vae, image, generators=[generator])
        mirrored = encode_images(vae, image.flip(-1), generators=[generator])
        expected = (mirrored if turned else straight)[0]
        assert torch.allclose(value, expected, atol=1e-5 if dtype == "float32" else 1e-3)
    monkeypatch.setattr(image_sets, "IN_MEMORY", 0)
    assert torch.equal(open_images(place).batch(rows, flip=flip)[0], values)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("after", range(1, 6))
def test_interrupted_latents_become_the_same(
    after: int, folders: list[Path], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = ChunkedArray.write_chunk, [after]

    def interrupted(array: ChunkedArray, index: int, rows: np.ndarray) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(array, index, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkedArray, "write_chunk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tree, tmp_path / "a", folders[0])
    assert content(build(tree, tmp_path / "a", folders[0])) == content(build(tree, tmp_path / "b", folders[0]))


def test_the_size_of_a_batch_changes_no_more_than_last_digits(folders: list[Path], tree: Path, tmp_path: Path) -> None:
    ours, theirs = (open_images(build(tree, tmp_path / str(n), folders[0], batch_size=n)) for n in (1, 100))
    assert np.allclose(ours.images[:], theirs.images[:], atol=1e-6)


def test_latents_of_another_autoencoder_are_refused(
    vae: Any, folders: list[Path], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = build(tree, tmp_path / "cache", folders[0], flips=False), vae_identity(load_vae(folders[1]))
    assert open_images(place, vae=vae_identity(vae)).mirrored is None
    with pytest.raises(DatasetError, match=rf"holds latents of the autoencoder {folders[0]} .*Build them with python -m"):
        open_images(place, vae=other)
    with pytest.raises(DatasetError, match="built with other settings or other images: vae"):
        build(tree, place, folders[1], flips=False)
    with pytest.raises(DatasetError, match=r"holds no latents of mirrored images; build one with flips=true"):
        open_images(place).batch([0], flip=torch.tensor([True]))
    moved = shutil.copytree(folders[0], tmp_path / "moved")
    before = content(place)
    build(tree, place, moved, flips=False)  # the same one in another place
    assert content(place) == before


def test_a_manifest_that_tells_another_shape_is_refused(folders: list[Path], tree: Path, tmp_path: Path) -> None:
    place = build(tree, tmp_path / "cache", folders[0])
    about = json.loads((place / "train/latents/.zarray").read_text())
    (place / "train/latents/.zarray").write_text(json.dumps(about | {"shape": [10, 4, 4, 2]}))
    with pytest.raises(DatasetError, match=r"latents of shape \(10, 4, 4, 4\), float32; remove the cache"):
        open_images(place)


def test_settings_that_do_not_suit_the_autoencoder_are_refused(folders: list[Path], tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size must be a multiple of 2 for this autoencoder; got 7"):
        build(tree, tmp_path / "cache", folders[0], size=7)
    with pytest.raises(ConfigError, match="takes 3 channels; digits has 1"):
        build("digits", tmp_path / "cache", folders[0])
    found = open_images(build("digits", tmp_path / "grey", folders[2], batch_size=256, chunk=256))
    assert (len(found), found.image_shape) == (1297, (4, 4, 4))


def test_an_autoencoder_that_returns_no_numbers_is_refused(folders: list[Path], tree: Path, tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "vae")
    weights = load_file(tmp_path / "vae" / WEIGHTS)
    weights["encoder.conv_in.bias"][0] = float("nan")
    save_file(weights, tmp_path / "vae" / WEIGHTS)
    with pytest.raises(DatasetError, match="infinite numbers or none at all"):
        build(tree, tmp_path / "cache", tmp_path / "vae")


def test_the_identity_is_of_configuration_and_weights_alone(vae: Any, folders: list[Path], tmp_path: Path) -> None:
    same = load_vae(shutil.copytree(folders[0], tmp_path / "same"))
    assert vae_identity(same) == vae_identity(vae) != vae_identity(load_vae(folders[1]))
    config = json.loads((tmp_path / "same/config.json").read_text())
    (tmp_path / "same/config.json").write_text(json.dumps(config | {"act_fn": "relu"}))
    assert vae_identity(load_vae(tmp_path / "same")) != vae_identity(vae)
    with torch.no_grad():
        same.decoder.conv_out.bias[0] += 1e-6
    assert vae_identity(same) != vae_identity(vae)


Harm = Callable[[Path], object]


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: rewrite(folder, lambda weights: weights.pop("decoder.conv_in.bias")), "missing keys"),
        (lambda folder: rewrite(folder, lambda weights: weights.update(extra=torch.ones(1))), "unexpected keys"),
        (
            lambda folder: rewrite(folder, lambda weights: weights.update({"decoder.conv_in.bias": torch.ones(1)})),
            "size mismatch",
        ),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no tensors"), "could not be loaded"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"It must hold config.json and diffusion_pytorch_model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "It must hold config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "could not be loaded"),
    ],
)
def test_a_damaged_autoencoder_is_a_sentence(harm: Harm, words: str, folders: list[Path], tmp_path: Path) -> None:
    harm(shutil.copytree(folders[0], tmp_path / "vae"))
    with pytest.raises(CheckpointError, match=words):
        load_vae(tmp_path / "vae")


def test_without_a_network_the_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to\n  'https://huggingface.co'")

    with pytest.raises(CheckpointError, match=r"There is no folder .*nowhere"):
        load_vae(tmp_path / "nowhere")
    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", offline)
    with pytest.raises(
        CheckpointError, match=r"connect to 'https://huggingface.co'\). Without a network, give the path of a folder"
    ):
        load_vae("owner/name")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingPackage, match=r"Latents need diffusers: pip install 'drifting-policy\[imagenet\]'"):
        load_vae("owner/name")
