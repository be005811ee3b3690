"""The loss of the image generator: whole optimisation steps of the release, and what must hold of any step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drifting_policy.drift import drift_loss
from drifting_policy.imagenet.averages import Averages
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.guidance import negative_weight
from drifting_policy.imagenet.objective import RAW, extract, field_metrics, image_loss
from drifting_policy.imagenet.release import (
    encoder_options,
    generator_options,
    load_encoder_weights,
    load_generator_weights,
    released_weights,
)
from drifting_policy.imagenet.schedule import learning_rate
from drifting_policy.imagenet.trainer import make_optimizer


class Golden:
    """Three steps of a tiny generator with a tiny encoder, and all that went in and came out."""

    def __init__(self, folder: Path) -> None:
        self.arrays = dict(np.load(folder / "train_step_tiny.npz"))
        self.entry = json.loads((folder / "training_tiny.json").read_text())["train_step_shared"]
        fields = json.loads((folder / "ckpt/mae_shared/params_ema/metadata.json").read_text())["model_config"]
        self.encoder = ImageEncoder(**encoder_options(fields)).requires_grad_(False).eval()
        with np.load(folder / "mae_tiny.npz") as archive:
            weights = {key.removeprefix("params/"): archive[key] for key in archive if key.startswith("params/")}
        load_encoder_weights(self.encoder, weights)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}

    def generator(self, step: int) -> ImageGenerator:
        """The generator before `step`."""
        generator = ImageGenerator(**generator_options(self.entry["generator_config"]))
        load_generator_weights(generator, self.under(f"step{step - 1}/params_after/" if step else "params0/"))
        return generator

    def features(self, images: Tensor) -> dict[str, Tensor]:
        left_out = self.entry["features_left_out"]
        return {name: value for name, value in self.encoder.features(images).items() if name not in left_out}

    def inputs(self, step: int, generator: ImageGenerator) -> dict[str, Any]:
        def images(name: str) -> Tensor:
            return torch.from_numpy(self.arrays[f"step{step}/{name}"]).movedim(-1, -3)

        labels = torch.from_numpy(self.arrays[f"step{step}/labels"])
        return {
            "labels": labels,
            "positives": images("pos"),
            "unconditional": images("neg"),
            "scales": torch.from_numpy(self.arrays[f"step{step}/cfg"]),
            "noise": images("noise").unflatten(0, (len(labels), -1)),
            "style": torch.from_numpy(self.arrays[f"step{step}/noise_labels"]).unflatten(0, (len(labels), -1)),
            "temperatures": tuple(self.entry["R_list"]),
        }


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "golden")


STEPS = (0, 1, 2)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_that_of_the_release(golden: Golden, step: int) -> None:
    generator = golden.generator(step)
    inputs = golden.inputs(step, generator)
    losses, fields = image_loss(generator, golden.features, **inputs)
    losses.mean().backward()
    expected = golden.under(f"step{step}/")
    assert abs(float(losses.detach().mean()) / float(expected["loss"]) - 1) < 1e-4
    ours = {f"scale/{name}": field.scale for name, field in fields.items()}
    for i, temperature in enumerate(inputs["temperatures"]):
        ours |= {f"loss_{temperature}/{name}": field.rms[i].square() for name, field in fields.items()}
    assert sorted(ours) == golden.entry["metrics"]
    for name, value in zip(golden.entry["metrics"], expected["metric_values"], strict=True):
        assert float(ours[name]) == pytest.approx(value, rel=5e-3), name

    norm = nn.utils.clip_grad_norm_(generator.parameters(), golden.entry["kwargs"]["max_grad_norm"])
    assert float(norm) == pytest.approx(float(expected["g_norm"]), rel=2e-3)
    theirs = golden.under(f"step{step}/clipped_grad/")
    gradients = dict(released_weights(generator, {name: p.grad for name, p in generator.named_parameters()}))
    assert gradients.keys() == theirs.keys()
    difference, length = (
        np.sqrt(sum(np.square(v).sum() for v in values))
        for values in ([gradients[n] - theirs[n] for n in theirs], theirs.values())
    )
    assert difference / length < 5e-3
    images = generator(
        inputs["noise"].flatten(0, 1),
        labels=torch.from_numpy(expected["gen_labels"]),
        cfg_scale=inputs["scales"].repeat_interleave(4),
        style=inputs["style"].flatten(0, 1),
    )
    assert (
        np.abs(images.detach().movedim(1, -1).numpy() - expected["gen_samples"]).max()
        < 1e-5 * np.abs(expected["gen_samples"]).max()
    )


def test_updates_and_average_are_those_of_the_release(golden: Golden) -> None:
    settings, schedule = golden.entry["optimizer"], golden.entry["optimizer"]["lr"]
    generator = golden.generator(0)
    averages = Averages(generator, [golden.entry["ema_decay"], 0.5])
    optimizer = make_optimizer(
        generator, learning_rate=1.0, betas=(settings["adamw_b1"], settings["adamw_b2"]), weight_decay=settings["weight_decay"]
    )
    scratch = golden.generator(0)
    for step in STEPS:
        load_generator_weights(generator, golden.under(f"step{step - 1}/params_after/" if step else "params0/"))
        load_generator_weights(scratch, golden.under(f"step{step}/clipped_grad/"))
        for parameter, gradient in zip(generator.parameters(), scratch.parameters(), strict=True):
            parameter.grad = gradient.detach().clone()
        rate = learning_rate(
            step,
            peak=schedule["learning_rate"],
            warmup_steps=schedule["warmup_steps"],
            total_steps=schedule["total_steps"],
            shape="constant",
        )
        assert rate == pytest.approx(float(golden.arrays[f"step{step}/lr"]), rel=1e-5)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        averages.update(generator)
        for network, name in ((generator, "params"), (averages.main, "ema")):
            theirs = golden.under(f"step{step}/{name}_after/")
            for key, value in released_weights(network, dict(network.named_parameters())):
                assert np.abs(value - theirs[key]).max() <= 1e-5 * np.abs(theirs[key]).max(), (step, name, key)
    for name, moment in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        values = {key: optimizer.state[parameter][moment] for key, parameter in generator.named_parameters()}
        theirs = golden.under(f"final/adam_{name}/")
        for key, value in released_weights(generator, values):
            assert np.abs(value - theirs[key]).max() <= 1e-5 * np.abs(theirs[key]).max() + 1e-20, key


def tiny() -> tuple[ImageGenerator, ImageEncoder]:
    """A generator of images with 2 channels and 8 x 8 pixels that has learned something, and an encoder of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = ImageGenerator(
            classes=5, image_size=8, in_channels=2, out_channels=2, patch=4, width=16, depth=1, heads=2, cond_dim=16,
            registers=1, styles=3, style_tokens=2, precision="float32",
        )  # fmt: skip
        for parameter in generator.parameters():
            nn.init.normal_(parameter, std=0.2)
        encoder = ImageEncoder(in_channels=2, width=64, layers=(1, 1, 1, 1), fold=1)
    return generator, encoder.requires_grad_(False)


def drawn(*, labels: int = 3, positives: int = 5, unconditional: int = 2, generated: int = 4) -> dict[str, Any]:
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, 2, 8, 8, generator=source)

    return {
        "labels": torch.arange(labels),
        "positives": normal(labels, positives) + 0.5,
        "unconditional": normal(labels, unconditional) - 0.5,
        "scales": torch.linspace(1, 3, labels),
        "noise": normal(labels, generated),
        "style": torch.randint(3, (labels, generated, 2), generator=source),
    }


def gradients(generator: ImageGenerator, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss.mean(), list(generator.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("unconditional", [0, 2])
def test_without_an_encoder_it_is_the_drifting_loss_of_the_images(unconditional: int) -> None:
    (generator, _), inputs = tiny(), drawn(unconditional=unconditional)
    losses, fields = image_loss(generator, None, **inputs, temperatures=(0.1, 0.5))
    images = torch.stack(
        [
            generator(
                inputs["noise"][i],
                labels=torch.full((4,), i),
                cfg_scale=inputs["scales"][i].expand(4),
                style=inputs["style"][i],
            )
            for i in range(3)
        ]
    )
    weight = negative_weight(inputs["scales"], generated=4, unconditional=2)[:, None].expand(3, 2)
    negatives = {"neg": inputs["unconditional"].flatten(2), "neg_weight": weight} if unconditional else {}
    expected, field = drift_loss(images.flatten(2), inputs["positives"].flatten(2), temperatures=(0.1, 0.5), **negatives)
    torch.testing.assert_close(losses, expected)
    assert list(fields) == [RAW]
    torch.testing.assert_close(fields[RAW].rms, field.rms)
    torch.testing.assert_close(gradients(generator, losses), gradients(generator, expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_encoding_in_chunks_changes_neither_loss_nor_gradient(chunk: int) -> None:
    (generator, encoder), inputs = tiny(), drawn()
    losses, fields = image_loss(generator, encoder.features, **inputs)
    chunked, others = image_loss(generator, encoder.features, **inputs, feature_chunk=chunk)
    assert list(fields) == list(others)
    torch.testing.assert_close(chunked, losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients(generator, chunked), gradients(generator, losses), rtol=1e-3, atol=1e-4)


def test_chunks_bound_what_is_encoded_at_once() -> None:
    (_, encoder), sizes = tiny(), []

    def watched(images: Tensor) -> dict[str, Tensor]:
        sizes.append((len(images), images.requires_grad, torch.is_grad_enabled()))
        return encoder.features(images)

    images = torch.zeros(7, 2, 8, 8, requires_grad=True)
    found = extract(watched, images, chunk=3)
    assert [size for size, _, _ in sizes] == [3, 3, 1]
    assert list(found)[-1] == RAW
    assert all(len(value) == 7 for value in found.values())
    sum(value.sum() for value in found.values()).backward()  # type: ignore[union-attr]
    assert sorted(size for size, _, _ in sizes[3:]) == [1, 3, 3]  # again, for the gradient
    assert images.grad is not None


def test_the_guidance_of_a_label_is_heard() -> None:
    (generator, encoder), inputs = tiny(), drawn()
    _, plain = image_loss(generator, encoder.features, **inputs)
    _, others = image_loss(generator, encoder.features, **inputs | {"scales": inputs["scales"] + 1})
    assert (plain["norm_x"].scale - others["norm_x"].scale).abs() > 1e-4
    metrics = field_metrics(plain, (0.02, 0.05, 0.2))
    assert list(metrics) == ["drift_rms_0.02", "drift_rms_0.05", "drift_rms_0.2"]
    torch.testing.assert_close(metrics["drift_rms_0.2"], torch.stack([field.rms[2] for field in plain.values()]).mean())


def test_nothing_but_the_generator_learns() -> None:
    (generator, encoder), inputs = tiny(), drawn()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    losses, _ = image_loss(generator, encoder.features, **inputs)
    losses.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
