"""The masked auto-encoder and its encoder against the numbers of the release: outputs, losses, gradients, names and counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drifting_policy.imagenet.autoencoder import MaskedAutoencoder, classification_weight, draw_mask, masked_loss
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.release import (
    autoencoder_options,
    encoder_names,
    encoder_options,
    load_encoder_weights,
    released_weights,
)
from drifting_policy.types import CheckpointError, ConfigError

CASES = ("m50", "m50_cls", "mrange", "nomask")


class Golden:
    """The arrays and configurations of the tiny auto-encoder, and of its variant for pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arrays = dict(np.load(folder / "mae_tiny.npz"))
        self.json = json.loads((folder / "mae_tiny.json").read_text())

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}

    def images(self, name: str) -> torch.Tensor:
        return channels_first(self.arrays[name])

    def build(self, **changes: Any) -> MaskedAutoencoder:
        model = MaskedAutoencoder(**autoencoder_options(self.json["config"]) | changes)
        load_encoder_weights(model, self.under("params/"))
        return model

    def build_for_pixels(self) -> MaskedAutoencoder:
        model = MaskedAutoencoder(**autoencoder_options(self.json["pixel_variant"]["config"]))
        load_encoder_weights(model, self.under("params/") | self.under("pix/params/"))
        return model


def channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).movedim(-1, 1)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "golden")


def error(ours: torch.Tensor | np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest number."""
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else ours
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_losses_are_those_of_the_release(golden: Golden, case: str) -> None:
    model, images, labels = golden.build(), golden.images("x"), torch.from_numpy(golden.arrays["labels"])
    theirs, weight = golden.under(f"fwd/{case}/"), golden.json["cases"][case]["lambda_cls"]
    mask = channels_first(theirs["mask"])
    drawn, logits = model(images, mask)
    loss, metrics = masked_loss(model, images, labels, mask, weight=weight)
    assert error(drawn.movedim(1, -1), theirs["recon"]) < 5e-5
    assert error(logits, theirs["logits"]) < 5e-5
    assert np.allclose(loss.detach(), theirs["loss"], rtol=2e-6, atol=1e-7)
    names = {"cls_loss": "classification", "recon_loss": "reconstruction", "accuracy": "accuracy", "mask_ratio": "hidden"}
    for name, ours in names.items():
        assert np.allclose(metrics[ours], theirs[f"metric/{name}"], rtol=2e-6, atol=1e-7), name


def test_maps_inside_are_those_of_the_release(golden: Golden) -> None:
    model, theirs = golden.build(), golden.under("fwd/m50_cls/")
    found: dict[str, torch.Tensor] = {}
    steps = {f"dec/{name}": step for name, step in zip(("up43", "up32", "up21", "up10"), model.decoder.steps, strict=True)}
    for name, module in steps.items():
        module.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output))
    model.decoder.bridge.register_forward_hook(lambda _, __, output: found.__setitem__("dec/bridge", output.relu()))
    mask = channels_first(theirs["mask"])
    found |= {f"enc/{name}": values for name, values in model.encoder(golden.images("x") * (1 - mask)).items()}
    model(golden.images("x"), mask)
    assert len(found) == 10
    for name, values in found.items():
        assert error(values.movedim(1, -1), theirs[name]) < 5e-5, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_release(golden: Golden, checkpointing: bool) -> None:
    model, theirs = golden.build(checkpointing=checkpointing), golden.under("fwd/m50_cls/")
    labels = torch.from_numpy(golden.arrays["labels"])
    loss, _ = masked_loss(model, golden.images("x"), labels, channels_first(theirs["mask"]), weight=0.1)
    loss.mean().backward()
    ours = dict(released_weights(model, {name: parameter.grad for name, parameter in model.named_parameters()}))
    norms = golden.json["grad_norms_m50_cls"]
    assert set(ours) == set(norms)
    for name, values in ours.items():
        assert np.linalg.norm(values) == pytest.approx(norms[name], rel=1e-3), name
    arrays = golden.under("fwd/m50_cls/grad/")
    assert len(arrays) > 60
    for name, values in arrays.items():
        assert error(ours[name], values) < 1e-3, name


def test_folded_pixels_are_those_of_the_release(golden: Golden) -> None:
    model, theirs, images = golden.build_for_pixels(), golden.under("pix/"), golden.images("pix/x")
    mask = channels_first(theirs["mask"])
    drawn, logits = model(images, mask)
    loss, _ = masked_loss(model, images, torch.from_numpy(theirs["labels"]), mask, weight=0.1)
    assert error(drawn.movedim(1, -1), theirs["recon"]) < 5e-5
    assert error(logits, theirs["logits"]) < 5e-5
    assert np.allclose(loss.detach(), theirs["loss"], rtol=2e-6)


def test_fresh_weights_have_the_statistics_of_the_release(golden: Golden) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(**autoencoder_options(golden.json["config"]))
    ours = dict(released_weights(model, dict(model.named_parameters())))
    assert set(ours) == set(golden.json["init_stats"])
    for name, stats in golden.json["init_stats"].items():
        values = ours[name]
        assert list(values.shape) == stats["shape"], name
        spread = 6 / np.sqrt(2 * values.size)  # six deviations of an estimated deviation
        assert values.std() == pytest.approx(stats["std"], rel=2 * spread, abs=1e-7), name
        limit = max(abs(stats["min"]), abs(stats["max"]))
        assert np.abs(values).max() == pytest.approx(limit, rel=0.25 if values.size < 4000 else 0.02), name


@pytest.mark.parametrize("name", ["latent_640", "latent_ablation_256", "pixel_640"])
def test_release_sizes_have_the_names_and_shapes_of_the_release(shared: Path, name: str) -> None:
    entry = json.loads((shared / "golden" / "release_shapes.json").read_text())[f"mae/{name}"]
    with torch.device("meta"):
        model = MaskedAutoencoder(**autoencoder_options(entry["model"]))
        encoder = ImageEncoder(**encoder_options(entry["model"]))
    own, shapes = dict(model.named_parameters()), {}
    for theirs, ours in encoder_names(model).items():
        shape = list(own[ours].shape)
        order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(len(shape), (0,))
        shapes[theirs] = [shape[axis] for axis in order] if theirs.endswith("/kernel") else shape
    assert shapes == entry["params"]
    assert sum(p.numel() for p in own.values()) == entry["n_params"]
    assert encoder.recipe == model.encoder.recipe
    assert encoder.recipe["precision"] == "bfloat16"
    assert set(encoder_names(encoder)) == {theirs for theirs in shapes if theirs.startswith("encoder/")}


def test_an_encoder_alone_needs_neither_decoder_nor_classifier(golden: Golden) -> None:
    released, whole = golden.under("params/"), golden.build()
    alone = [name for name in released if name.startswith("encoder/")]
    for names in (alone, list(released)):
        encoder = ImageEncoder(**encoder_options(golden.json["config"]))
        load_encoder_weights(encoder, {name: released[name] for name in names})
        state = whole.encoder.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(CheckpointError, match=r"missing: .*fc/bias"):
        load_encoder_weights(whole, {name: released[name] for name in alone})


def test_wrong_weights_and_fields_are_named(golden: Golden) -> None:
    released, config = golden.under("params/"), golden.json["config"]
    encoder = ImageEncoder(**encoder_options(config))
    with pytest.raises(CheckpointError, match=r"missing: \['encoder/gn1/bias'\]"):
        load_encoder_weights(encoder, {name: value for name, value in released.items() if name != "encoder/gn1/bias"})
    with pytest.raises(CheckpointError, match=r"unknown: \['encoder/gn2/bias'\]"):
        load_encoder_weights(encoder, released | {"encoder/gn2/bias": np.zeros(32)})
    for wrong in (np.zeros((3, 3, 4)), np.zeros((3, 3, 5, 32))):
        with pytest.raises(CheckpointError, match=r"does not fit stem.conv.weight"):
            load_encoder_weights(encoder, released | {"encoder/conv1/kernel": wrong})
    with pytest.raises(CheckpointError, match=r"unknown fields \['surprise'\]"):
        encoder_options(config | {"surprise": 1})
    with pytest.raises(CheckpointError, match=r"lacks the fields \['base_channels'\]"):
        autoencoder_options({name: value for name, value in config.items() if name != "base_channels"})
    with pytest.raises(CheckpointError, match=r"dropout_prob 0.1"):
        encoder_options(config | {"dropout_prob": 0.1})
    assert autoencoder_options({name: value for name, value in config.items() if name != "num_classes"})["classes"] == 1000


def tiny(**changes: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(**{"in_channels": 3, "width": 8, "layers": (1, 2, 1, 1), "fold": 2} | changes)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 3, 9, 8), (2, 3, 8, 7), (2, 3, 0, 8)])
def test_wrong_images_are_refused(shape: tuple[int, ...]) -> None:
    for method in (tiny(), tiny().features):
        with pytest.raises(
            ConfigError, match=rf"3 channels .* multiples of 2; got {shape[1]} channels of {shape[2]} x {shape[3]}"
        ):
            method(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "release"}, "bfloat16.*float32"),
        ({"layers": (1, 2, 1)}, r"four numbers .* got \[1, 2, 1\]"),
        ({"layers": (1, 0, 1, 1)}, "at least 1"),
        ({"fold": 0}, "8 and 0"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)
    with pytest.raises(ConfigError, match="multiple of 32; got 48"):
        MaskedAutoencoder(classes=3, mask_cell=1, in_channels=3, width=48)
    with pytest.raises(ConfigError, match="got 3 and 0"):
        MaskedAutoencoder(classes=3, mask_cell=0, in_channels=3, width=32)


def test_a_recipe_builds_the_same_network_again(golden: Golden) -> None:
    model = golden.build()
    again = MaskedAutoencoder(**json.loads(json.dumps(model.recipe)))
    encoder = ImageEncoder(**json.loads(json.dumps(model.encoder.recipe)))
    assert again.recipe == model.recipe
    assert again.state_dict().keys() == model.state_dict().keys()
    assert encoder.state_dict().keys() == model.encoder.state_dict().keys()


def test_images_do_not_see_each_other() -> None:
    encoder, images = tiny(), torch.randn(3, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    whole = encoder(images, every_block=1)
    assert [name for name in whole if "blk" in name] == [
        f"layer{s}_blk{b}" for s, b in ((1, 1), (2, 1), (2, 2), (3, 1), (4, 1))
    ]
    for i in range(3):
        for name, values in encoder(images[i : i + 1], every_block=1).items():
            torch.testing.assert_close(values, whole[name][i : i + 1], rtol=1e-3, atol=1e-3)  # norms of few numbers


def test_checkpointing_computes_blocks_twice_and_changes_no_gradient_of_parameters_or_images() -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        encoder, count = tiny(checkpointing=checkpointing), []
        encoder.stages[1][1].register_forward_pre_hook(lambda *_, count=count: count.append(1))
        images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        sum(values.square().mean() for values in encoder.features(images).values()).backward()
        gradients.append([images.grad, *(parameter.grad for parameter in encoder.parameters())])
        calls.append(len(count))
    assert calls == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("cast", [False, True])
def test_half_precision_is_close_and_keeps_its_types(golden: Golden, cast: bool) -> None:
    """Weights may also be stored in bfloat16, as those of a frozen encoder are."""
    exact, half = golden.build(), golden.build(precision="bfloat16")
    encoder = half.encoder.to(torch.bfloat16) if cast else half.encoder
    images = golden.images("x")
    with torch.no_grad():
        for (name, ours), theirs in zip(encoder.features(images).items(), exact.encoder.features(images).values(), strict=True):
            one_position = name == "norm_x" or "_mean" in name or "_std" in name
            assert ours.dtype == (torch.float32 if one_position else torch.bfloat16), name
            assert 0 <= (ours - theirs).square().mean().sqrt() < 0.03 * theirs.square().mean().sqrt(), name
    if not cast:
        mask = channels_first(golden.arrays["fwd/m50/mask"])
        drawn, logits = half(images, mask)
        assert drawn.dtype == logits.dtype == torch.float32
        assert 0 < (drawn - exact(images, mask)[0]).square().mean().sqrt() < 0.03
        drawn.square().mean().backward()
        assert half.encoder.stem.conv.weight.grad.dtype == torch.float32


def test_masks_hide_whole_cells_with_the_probability_of_their_image() -> None:
    def draw(low: float, high: float, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return draw_mask(400, size=24, cell=2, low=low, high=high, generator=generator)

    masks = draw(0.3, 0.3)
    assert masks.shape == (400, 1, 24, 24)
    assert masks.dtype == torch.float32
    cells = masks.unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.equal(cells.amax(dim=(4, 5)), cells.amin(dim=(4, 5)))
    assert set(masks.unique().tolist()) == {0, 1}
    shares = masks.mean(dim=(1, 2, 3))
    assert shares.mean() == pytest.approx(0.3, abs=6 * (0.21 / 144 / 400) ** 0.5)
    assert shares.std() == pytest.approx((0.21 / 144) ** 0.5, rel=0.25)  # of 144 independent cells
    wide = draw(0.2, 0.8).mean(dim=(1, 2, 3))
    assert wide.std() == pytest.approx((0.36 / 12 + 0.22 / 144) ** 0.5, rel=0.15)
    assert not draw(0.0, 0.0).any()
    assert draw(1.0, 1.0).all()
    assert torch.equal(masks, draw(0.3, 0.3))
    assert not torch.equal(masks, draw(0.3, 0.3, seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": 3}, "16 is no multiple of 3"),
        ({"low": 0.6}, "got 0.6 and 0.5"),
        ({"high": 1.5}, "1.5"),
        ({"low": -0.1}, "-0.1"),
    ],
)
def test_impossible_masks_are_refused(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"size": 16, "cell": 2, "low": 0.5, "high": 0.5, "generator": torch.Generator()}
    with pytest.raises(ConfigError, match=message):
        draw_mask(1, **options | changes)


def test_the_weight_of_the_classification_rises_as_in_the_release(shared: Path) -> None:
    pieces = np.load(shared / "golden" / "training_pieces.npz")
    options = json.loads((shared / "golden" / "training_tiny.json").read_text())["pieces"]["lambda"]
    named = {
        "total_steps": options["total_steps"],
        "last_steps": options["finetune_last_steps"],
        "ramp_steps": options["warmup_finetune"],
        "highest": options["finetune_cls"],
    }
    ours = [classification_weight(int(step), **named) for step in pieces["lambda/steps"]]
    assert np.allclose(ours, pieces["lambda/values"], rtol=1e-6, atol=0)
    assert classification_weight(99, total_steps=100, last_steps=0, ramp_steps=10, highest=0.1) == 0
    assert classification_weight(90, total_steps=100, last_steps=10, ramp_steps=0, highest=0.1) == 0.1
