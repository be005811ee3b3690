"""A converted release is the release: the same weights and outputs; and a conversion that fails leaves nothing behind."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from drifting_policy.checkpoint import read_config
from drifting_policy.imagenet import hub, load_encoder, load_generator, tensor_file
from drifting_policy.imagenet.checkpoints import load_autoencoder, load_network
from drifting_policy.imagenet.config import register
from drifting_policy.imagenet.release import released_weights
from drifting_policy.imagenet.tensor_file import write_tensors
from drifting_policy.imagenet.weights import WeightFile
from drifting_policy.types import ConfigError

WriteRelease = Callable[..., Path]
Convert = Callable[..., Any]


@pytest.fixture
def convert(program: Callable[..., Any]) -> Convert:
    """Runs the entry point with `src`, `dst` and further arguments."""
    register()
    return lambda src, dst, *arguments: program("imagenet.convert", f"src={src}", f"dst={dst}", *arguments)


def golden_arrays(file: Path, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in np.load(file).items() if name.startswith(prefix)}


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest number."""
    assert tuple(ours.shape) == theirs.shape
    return float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())


def assert_weights(network: Any, expected: dict[str, np.ndarray]) -> None:
    ours = dict(released_weights(network, dict(network.named_parameters())))
    assert ours.keys() == expected.keys()
    assert all(np.array_equal(values, expected[name]) for name, values in ours.items())


@pytest.mark.parametrize("name", ["gen_shared", "gen_shared_chunked"])
def test_a_converted_generator_is_that_of_the_release(name: str, shared: Path, tmp_path: Path, convert: Convert) -> None:
    golden = shared / "golden" / "generator_tiny.npz"
    done = convert(shared / "golden" / "ckpt" / name, tmp_path / "ours")
    assert done.code == 0
    assert "0.1 million parameters, step 1234" in done.out
    assert read_config(tmp_path / "ours")["source"] == {
        "release": str(shared / "golden" / "ckpt" / name),
        "step": 1234,
        "ema_decay": 0.999,
    }
    for network in (load_generator(tmp_path / "ours"), load_generator(shared / "golden" / "ckpt" / name)):
        assert_weights(network, golden_arrays(golden, "base/params/"))
        for case in ("a", "b"):
            stored = golden_arrays(golden, f"base/{case}/")
            samples = network(
                torch.from_numpy(stored["noise"]).movedim(-1, 1),
                labels=torch.from_numpy(stored["c"]).long(),
                cfg_scale=torch.from_numpy(stored["cfg_scale"]),
                style=torch.from_numpy(stored["noise_labels"]).long(),
            )
            assert error(samples.movedim(1, -1), stored["samples"]) < 1e-5


def test_a_converted_autoencoder_is_that_of_the_release(shared: Path, tmp_path: Path, convert: Convert) -> None:
    golden, released = shared / "golden" / "mae_tiny.npz", shared / "golden" / "ckpt" / "mae_shared"
    assert convert(released, tmp_path / "whole").code == 0
    assert convert(released, tmp_path / "encoder", "encoder_only=true").code == 0
    images = torch.from_numpy(np.load(golden)["x"]).movedim(-1, 1)
    for place in (tmp_path / "whole", released):
        network = load_autoencoder(place)
        assert_weights(network, golden_arrays(golden, "params/"))
        stored = golden_arrays(golden, "fwd/m50/")
        drawn, logits = network(images, torch.from_numpy(stored["mask"]).movedim(-1, 1))
        assert error(drawn.movedim(1, -1), stored["recon"]) < 5e-5
        assert error(logits, stored["logits"]) < 5e-5
    features = golden_arrays(golden, "feat/default/")
    for place in (tmp_path / "whole", tmp_path / "encoder", released):
        found = load_encoder(place).features(images)
        assert set(found) == set(features) - {"global"}
        assert max(error(values, features[name]) for name, values in found.items()) < 5e-5
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("encoder", "whole")]
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("kind", ["gen", "mae"])
def test_a_converted_network_is_the_one_that_loads(
    kind: str, write_release: WriteRelease, tmp_path: Path, convert: Convert
) -> None:
    wide = {"LightningDiT_0/pos_embed": np.random.default_rng(0).normal(size=(1, 4, 16))} if kind == "gen" else {}
    folder = write_release(kind, arrays=wide)
    assert convert(folder, tmp_path / "ours").code == 0
    ours, theirs = load_network(tmp_path / "ours"), load_network(folder)
    assert ours.recipe == theirs.recipe
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert all(value.dtype == torch.float32 for value in ours.state_dict().values())


def test_an_encoder_needs_no_decoder_and_does_not_look_into_it(
    write_release: WriteRelease, tmp_path: Path, convert: Convert
) -> None:
    folder = write_release("mae", arrays={"decoder/head/kernel": np.ones(3, np.complex64), "fc/bias": None})
    assert "decoder/head/kernel" in convert(folder, tmp_path / "whole").error
    assert convert(folder, tmp_path / "encoder", "encoder_only=true").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", folder.name]


def test_what_cannot_be_converted_is_told(write_release: WriteRelease, tmp_path: Path, convert: Convert) -> None:
    folder = write_release("gen")
    assert "expected an auto-encoder" in convert(folder, tmp_path / "ours", "encoder_only=true").error
    assert "nothing of the release in" in convert(tmp_path, tmp_path / "ours").error
    assert "src=FOLDER" in convert("", tmp_path / "ours").error
    assert "dst=FOLDER" in convert(folder, "").error
    assert "Did you mean 'encoder_only'" in convert(folder, tmp_path / "ours", "encoder_onl=true").error
    (tmp_path / "file").touch()
    assert "could not be written" in convert(folder, tmp_path / "file" / "ours").error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", folder.name]


def test_only_checkpoints_are_replaced_and_only_if_asked(write_release: WriteRelease, tmp_path: Path, convert: Convert) -> None:
    folder = write_release("gen")
    assert "is no checkpoint and will not be replaced" in convert(folder, folder, "overwrite=true").error
    target = tmp_path / "ours"
    target.mkdir()
    assert convert(folder, target).code == 0
    assert "exists already; give another dst, or overwrite=true" in convert(folder, target).error
    before = (target / "model.safetensors").read_bytes()
    write_release("gen", arrays={"Embed_0/embedding": np.ones((3, 8), np.float32)})
    assert convert(folder, target, "overwrite=true").code == 0
    assert (target / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), "damage"], ids=str)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_conversion_that_fails_leaves_things_as_they_were(
    failure: Any, earlier: bool, write_release: WriteRelease, tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = write_release("gen"), tmp_path / "ours"
    if earlier:
        assert convert(folder, target).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read, last = WeightFile.__getitem__, "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0/kernel"

    def broken(self: WeightFile, name: str) -> np.ndarray:
        if name == last and failure == "damage":
            return read(self, name)[:-1]
        if name == last:
            raise failure
        return read(self, name)

    monkeypatch.setattr(WeightFile, "__getitem__", broken)
    if failure == "damage":
        with pytest.raises(ValueError, match="as many elements as its shape"):
            convert(folder, target, "overwrite=true")
    elif isinstance(failure, OSError):
        assert "No space left on device" in convert(folder, target, "overwrite=true").error
    else:
        assert convert(folder, target, "overwrite=true").code == 130
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert target.exists() == earlier


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tensors_are_read_back_as_they_were_written(
    data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "SLAB", data.draw(st.sampled_from([1, 16, 100, 2**24])))
    shapes = data.draw(st.dictionaries(st.text(max_size=9).filter("__metadata__".__ne__), SHAPES, max_size=5))
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in shapes.items():
        kind = data.draw(st.sampled_from(["<f4", ">f4", "<f2", "<f8"]))
        axes = data.draw(st.permutations(range(len(shape))))
        arrays[name] = rng.normal(size=[shape[axis] for axis in axes]).astype(kind).transpose(np.argsort(axes))
    file = tmp_path / "model.safetensors"
    write_tensors(file, shapes, lambda name: list(arrays[name]) if arrays[name].ndim > 1 else [arrays[name]])
    read = load_file(file)
    assert read.keys() == arrays.keys()
    for name, values in read.items():
        np.testing.assert_array_equal(values.numpy(), arrays[name].astype(np.float32), strict=True)


SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_tensor_of_another_size_is_refused(extra: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'x' do not have as many elements as its shape \(2, 3\)"):
        write_tensors(tmp_path / "x", {"x": (2, 3)}, lambda name: [np.ones(6 + extra, np.float32)])


def test_released_ids_are_downloaded_when_they_are_asked_for(
    write_release: WriteRelease, tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = write_release("gen", place="."), []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(folder / Path(file).name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert convert("hf://ablation", tmp_path / "ours").code == 0
    place = "models/gen/jax/ablation"
    assert asked == [("Goodeat/drifting", f"{place}/{file}") for file in ("metadata.json", "ema_params.msgpack")]
    assert read_config(tmp_path / "ours")["source"]["release"] == "hf://ablation"
    assert load_generator("hf://latent_L_sota").recipe == load_generator(tmp_path / "ours").recipe
    assert asked[-1][1] == "models/gen/jax/latent_L_sota/ema_params.msgpack"


def test_releases_that_are_unknown_or_out_of_reach_are_told(
    tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        "Unknown release 'hf://latent_XL'; choose one of hf://latent_L_sota" in convert("hf://latent_XL", tmp_path / "a").error
    )

    def offline(*arguments: str) -> str:
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot\nand outgoing traffic is disabled.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    told = convert("hf://mae_latent_640", tmp_path / "a").error
    assert "could not be downloaded (Cannot find an appropriate cached snapshot and outgoing traffic is disabled)" in told
    assert "huggingface.co/Goodeat/drifting/tree/main/models/mae/jax/mae_latent_640" in told
    with pytest.raises(ConfigError, match="Unknown release"):
        load_generator("hf://")


def test_the_ids_are_those_of_the_release(shared: Path) -> None:
    described = json.loads((shared / "golden" / "release_shapes.json").read_text())
    assert len(hub.FOLDERS) == len(described)
    assert {name.partition("/")[0] for name in described} == {folder.split("/")[1] for folder in hub.FOLDERS.values()}
