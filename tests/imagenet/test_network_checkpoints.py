"""Networks load as they were saved, or as the release wrote them; anything else is refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from drifting_policy.checkpoint import checkpoint_path, load_state, read_config, write_checkpoint
from drifting_policy.imagenet import load_encoder, load_generator
from drifting_policy.imagenet.autoencoder import MaskedAutoencoder
from drifting_policy.imagenet.checkpoints import load_autoencoder, load_network, save_network
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.types import CheckpointError, ConfigError

WriteRelease = Callable[..., Path]


def generator(**changes: Any) -> ImageGenerator:
    options: dict[str, Any] = {"classes": 3, "image_size": 4, "in_channels": 1, "out_channels": 2, "patch": 2, "width": 16}
    options |= {"depth": 1, "heads": 2, "cond_dim": 8, "styles": 4, "style_tokens": 3, "precision": "float32"}
    return randomised(ImageGenerator(**options | changes))


def autoencoder(**changes: Any) -> MaskedAutoencoder:
    options: dict[str, Any] = {"classes": 3, "mask_cell": 2, "in_channels": 2, "width": 32, "layers": [1, 1, 1, 1]}
    return randomised(MaskedAutoencoder(**options | changes))


def randomised(network: Any) -> Any:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "generator": (generator, load_generator),
    "autoencoder": (autoencoder, load_autoencoder),
    "encoder": (lambda: autoencoder().encoder, load_encoder),
}


def assert_same(network: nn.Module, expected: nn.Module) -> None:
    assert type(network) is type(expected)
    assert network.recipe == expected.recipe
    ours, theirs = network.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_load_bit_for_bit_as_saved(kind: str, tmp_path: Path) -> None:
    make, load = NETWORKS[kind]
    network = make()
    path = save_network(tmp_path / "new" / "saved", network, metadata={"step": 7}, state={"step": 7, "x": torch.arange(3)})
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors", "state.pt"]
    assert_same(load(path), network)
    assert_same(load(str(path)), network)
    assert read_config(path)["step"] == 7
    assert (read_config(path)["kind"], read_config(path)["recipe"]) == (kind, network.recipe)
    assert torch.equal(load_state(path)["x"], torch.arange(3))


def test_a_loaded_generator_draws_what_the_saved_one_drew(tmp_path: Path) -> None:
    network = generator()
    style = network.draw_style(2, torch.Generator().manual_seed(0))
    inputs = {"labels": torch.tensor([0, 2]), "cfg_scale": torch.tensor([1.0, 2.0]), "style": style}
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    loaded = load_generator(save_network(tmp_path / "saved", network, metadata={}))
    assert torch.equal(loaded(noise, **inputs), network(noise, **inputs))


def test_an_encoder_is_found_inside_its_autoencoder(tmp_path: Path) -> None:
    network = autoencoder()
    assert_same(load_encoder(save_network(tmp_path / "saved", network, metadata={})), network.encoder)


def test_a_run_means_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no network in"):
        load_generator(tmp_path)
    networks = [generator(), generator()]
    for step, network in zip((900, 1000), networks, strict=True):
        save_network(checkpoint_path(tmp_path, step), network, metadata={})
    assert_same(load_generator(tmp_path), networks[1])


def test_networks_of_another_kind_are_refused(tmp_path: Path, write_release: WriteRelease) -> None:
    ours = {kind: save_network(tmp_path / kind, make(), metadata={}) for kind, (make, _) in NETWORKS.items()}
    released = {"generator": write_release("gen"), "autoencoder": write_release("mae")}
    accepted = {("autoencoder", "encoder")} | {(kind, kind) for kind in NETWORKS}
    for places in (ours, released):
        for kind, place in places.items():
            for wanted, (_, load) in NETWORKS.items():
                if (kind, wanted) not in accepted:
                    with pytest.raises(CheckpointError, match=f"{kind}.*; expected .*encoder|{kind}.*expected '{wanted}'"):
                        load(place)


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = save_network(tmp_path / "saved", generator(), metadata={})
    with pytest.raises(ConfigError, match="device=cuda:77 cannot be used"):
        load_generator(path, device="cuda:77")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"kind": "policy"}, "kind is 'policy', not one of generator, autoencoder, encoder"),
        ({"kind": ["generator"]}, "kind is"),
        ({"kind": None}, "kind is None"),
        ({"recipe": None}, "does not describe a network|No generator"),
        ({"recipe": {"surprise": 1}}, "No generator of this version can be built"),
        ({"recipe": generator().recipe | {"width": "wide"}}, "No generator of this version can be built"),
        ({"recipe": generator().recipe | {"width": 15}}, "width must be a multiple of 4"),
        ({"recipe": generator().recipe | {"width": 32}}, "does not describe a network.*ImageGenerator"),
        ({"recipe": generator().recipe | {"depth": 2}}, "does not describe a network.*ImageGenerator"),
        ({"recipe": generator().recipe | {"registers": 0}}, "does not describe a network.*ImageGenerator"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    good = save_network(tmp_path / "good", generator(), metadata={})
    content, described = (good / "model.safetensors").read_bytes(), {"kind": "generator", "recipe": generator().recipe}
    path = write_checkpoint(
        tmp_path / "bad", config=described | config, write=lambda draft: _write(draft / "model.safetensors", content)
    )
    with pytest.raises(CheckpointError, match=told):
        load_generator(path)


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "flipped", "absent"])
def test_damaged_weights_are_refused(damage: str, tmp_path: Path) -> None:
    path = save_network(tmp_path / "saved", generator(), metadata={})
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-1], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "absent": b""}[damage])
    if damage == "absent":
        file.unlink()
    with pytest.raises(CheckpointError, match=r"damaged|has no model"):
        load_generator(path)


@pytest.mark.parametrize("place", ["params_ema", "."])
def test_folders_of_the_release_load(place: str, write_release: WriteRelease) -> None:
    folder = write_release("mae", place=place)
    whole, encoder = load_autoencoder(folder), load_encoder(folder)
    assert isinstance(encoder, ImageEncoder)
    assert_same(encoder, whole.encoder)
    assert_same(load_encoder(folder / place), encoder)
    assert isinstance(load_generator(write_release("gen", place=place)), ImageGenerator)


def test_the_averages_are_found_beside_other_things(write_release: WriteRelease) -> None:
    folder = write_release("gen")
    (folder / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    (folder / "ema_params.msgpack").write_bytes(b"other weights")
    assert isinstance(load_generator(folder), ImageGenerator)


def test_the_early_names_of_files_load(write_release: WriteRelease) -> None:
    folder = write_release("gen", place=".")
    (folder / "ema_params.msgpack").rename(folder / "ema_model.msgpack")
    with pytest.raises(CheckpointError, match=r"ema_model\.msgpack comes without ema_model\.metadata\.json"):
        load_generator(folder)
    (folder / "metadata.json").rename(folder / "ema_model.metadata.json")
    assert isinstance(load_generator(folder), ImageGenerator)


def test_weights_without_metadata_training_states_and_nothing_are_told(tmp_path: Path, write_release: WriteRelease) -> None:
    folder = write_release("gen")
    (folder / "params_ema" / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match=r"comes without metadata\.json, which tells what network"):
        load_generator(folder)
    (tmp_path / "run" / "checkpoints" / "checkpoint_30000").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"training states of the release \(Orbax\), which are not read"):
        load_generator(tmp_path / "run")
    for place in (tmp_path / "absent", tmp_path / "run" / "checkpoints"):
        with pytest.raises(CheckpointError, match="no network in"):
            load_generator(place)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "metadata.json cannot be read"),
        ("[" * 100_000, "metadata.json cannot be read"),
        ("[]", "must tell the kind of the network, one of gen, mae"),
        ('{"kind": "vae"}', "found 'vae'"),
        ('{"kind": ["gen"]}', "must tell the kind"),
        ('{"kind": "gen"}', "under model_config; found none"),
        ('{"kind": "gen", "model_config": {}}', "lacks the fields"),
    ],
)
def test_wrong_metadata_are_told(content: str, told: str, write_release: WriteRelease) -> None:
    folder = write_release("gen")
    (folder / "params_ema" / "metadata.json").write_text(content)
    with pytest.raises(CheckpointError, match=told):
        load_generator(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "wide"),
        ("hidden_size", 10**30),
        ("hidden_size", -16),
        ("patch_size", 0),
        ("depth", None),
        ("num_heads", 3),
        ("num_classes", 1.5),
        ("mlp_ratio", []),
        ("input_size", {}),
    ],
)
def test_impossible_sizes_are_told(field: str, value: Any, write_release: WriteRelease) -> None:
    folder = write_release("gen")
    file = folder / "params_ema" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["model_config"][field] = value
    file.write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"can be built|does not fit|expected a floating-point array"):
        load_generator(folder)


KERNEL = "LightningDiT_0/blocks_0/Attention_0/TorchLinear_1/Dense_0/kernel"


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({KERNEL: None}, f"lacks \\['{KERNEL}'\\]"),
        ({"surprise/kernel": np.ones(3, np.float32)}, r"has no \['surprise/kernel'\]"),
        ({KERNEL: np.ones((16, 15), np.float32)}, r"Attention_0.* of shape \(16, 16\), found float32 of shape \(16, 15\)"),
        ({KERNEL: np.ones((16, 16, 1), np.float32)}, r"found float32 of shape \(16, 16, 1\)"),
        ({KERNEL: np.ones((16, 16), np.int32)}, r"expected a floating-point array .*found int32"),
        ({"noise_embeds_1/embedding": np.ones((4, 9), np.float32)}, r"noise_embeds_1.*shape \(4, 8\), found .*\(4, 9\)"),
    ],
)
def test_released_weights_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray | None], told: str, write_release: WriteRelease
) -> None:
    with pytest.raises(CheckpointError, match=told):
        load_network(write_release("gen", arrays=arrays))
