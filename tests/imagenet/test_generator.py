"""The image generator against the numbers of the release: golden outputs, intermediates, gradients, names and counts."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.layers import position_table, rotary_angles
from drifting_policy.imagenet.release import generator_names, generator_options, load_generator_weights, released_weights
from drifting_policy.types import CheckpointError, ConfigError

VARIANTS = ("base", "plain", "qkln")


class Golden:
    """The arrays and configurations of the tiny generators."""

    def __init__(self, folder: Path) -> None:
        self.arrays = dict(np.load(folder / "generator_tiny.npz"))
        self.json = json.loads((folder / "generator_tiny.json").read_text())
        self.shapes = json.loads((folder / "release_shapes.json").read_text())

    def build(self, variant: str) -> ImageGenerator:
        entry = self.json["variants"][variant]
        generator = ImageGenerator(**generator_options(entry["config"]))
        load_generator_weights(generator, self.under(f"{entry['params_of']}/params/"))
        return generator

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}

    def inputs(self, case: str, generator: ImageGenerator) -> dict[str, Any]:
        return case_inputs(self.under(f"{case}/"), generator)


def case_inputs(arrays: dict[str, np.ndarray], generator: ImageGenerator) -> dict[str, Any]:
    style = (
        torch.from_numpy(arrays["noise_labels"]).long() if generator.style_tokens else torch.zeros(len(arrays["c"]), 0).long()
    )
    return {
        "noise": torch.from_numpy(arrays["noise"]).movedim(-1, 1),
        "labels": torch.from_numpy(arrays["c"]).long(),
        "cfg_scale": torch.from_numpy(arrays["cfg_scale"]).float(),
        "style": style,
    }


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "golden")


def error(ours: torch.Tensor | np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest number."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_are_those_of_the_release(golden: Golden, variant: str, case: str) -> None:
    generator = golden.build(variant)
    inputs = golden.inputs(f"{variant}/{case}", generator)
    with torch.no_grad():
        samples = generator(**inputs).movedim(1, -1)
        cond = generator.conditioning(inputs["labels"], inputs["cfg_scale"], inputs["style"])
    assert error(cond, golden.arrays[f"{variant}/{case}/cond"]) < 1e-5
    assert error(samples, golden.arrays[f"{variant}/{case}/samples"]) < 1e-5


def test_intermediates_are_those_of_the_release(golden: Golden) -> None:
    generator = golden.build("base")
    found: dict[str, torch.Tensor] = {}
    watched = {
        "TorchLinear_0": generator.embed,
        "blocks_0": generator.transformer.blocks[0],
        "blocks_1": generator.transformer.blocks[1],
        "blocks_0/TorchLinear_0": generator.transformer.blocks[0].modulation.linear,
        "blocks_0/Attention_0": generator.transformer.blocks[0].attention,
        "blocks_1/SwiGLUFFN_0": generator.transformer.blocks[1].feed_forward,
        "FinalLayer_0/TorchLinear_1": generator.output,
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output.detach()))
    generator(**golden.inputs("base/a", generator))
    for name in watched:
        assert error(found[name], golden.arrays[f"base/a/inter/LightningDiT_0/{name}"]) < 1e-5, name


def test_gradients_are_those_of_the_release(golden: Golden) -> None:
    generator = golden.build("base")
    samples = generator(**golden.inputs("base/a", generator)).movedim(1, -1)
    (samples * torch.from_numpy(golden.arrays["base/a/cot"])).sum().backward()
    gradients = {name: parameter.grad for name, parameter in generator.named_parameters()}
    theirs = golden.under("base/a/grad/")
    ours = dict(released_weights(generator, gradients))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert error(value, theirs[name]) < 1e-4, name


@pytest.mark.parametrize("variant", ["bf16_attn32", "bf16_attn16"])
def test_half_precision_is_close_to_that_of_the_release(golden: Golden, variant: str) -> None:
    generator = golden.build(variant)
    with torch.no_grad():
        samples = generator(**golden.inputs(f"{variant}/a", generator)).movedim(1, -1).numpy()
    difference = samples - golden.arrays[f"{variant}/a/samples"]
    assert 0 < np.sqrt(np.square(difference).mean()) < 0.03


def test_the_own_half_precision_keeps_positions_apart_that_the_release_merges() -> None:
    merged, apart = (rotary_angles(272, 64, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    assert any(torch.equal(merged[:, i], merged[:, i + 1]) for i in range(256, 271))
    assert not any(torch.equal(apart[:, i], apart[:, i + 1]) for i in range(271))


def test_position_tables(golden: Golden) -> None:
    for name, table in golden.under("init/pos_embed/").items():
        grid, width = (int(part.lstrip("gridm_")) for part in name.split("_dim"))
        assert error(position_table(grid, width).reshape(table.shape), table) < 1e-6, name


def test_fresh_weights_have_the_statistics_of_the_release(golden: Golden) -> None:
    torch.manual_seed(0)
    for variant in ("base", "plain"):
        generator = ImageGenerator(**generator_options(golden.json["variants"][variant]["config"]))
        ours = dict(released_weights(generator, dict(generator.named_parameters())))
        for name, stats in golden.json["init_stats"][variant].items():
            values = ours[name]
            assert list(values.shape) == stats["shape"], name
            spread = 6 / np.sqrt(2 * values.size) + 1e-6  # six deviations of an estimated deviation
            assert values.std() == pytest.approx(stats["std"], rel=2 * spread, abs=1e-7), name
            assert abs(values).max() <= 1.5 * max(abs(stats["min"]), abs(stats["max"])) + 1e-7, name


def test_a_fresh_generator_draws_nothing(golden: Golden) -> None:
    generator = ImageGenerator(**generator_options(golden.json["variants"]["base"]["config"]))
    assert not generator(**golden.inputs("base/a", generator)).any()


@pytest.mark.parametrize("name", ["latent_ablation", "latent_sota_B", "latent_sota_L", "pixel_sota_B", "pixel_sota_L"])
def test_release_sizes_have_the_names_and_shapes_of_the_release(golden: Golden, name: str) -> None:
    entry = golden.shapes[f"gen/{name}"]
    with torch.device("meta"):
        generator = ImageGenerator(**generator_options(entry["model"]))
    own = dict(generator.named_parameters())
    shapes = {}
    for theirs, ours in generator_names(generator).items():
        parameter, _, table = ours.partition("/")
        shape = list(own[parameter].shape[1:] if table else own[parameter].shape)
        shapes[theirs] = shape[::-1] if theirs.endswith("/kernel") else shape
    assert shapes == {key: list(value) for key, value in entry["params"].items()}
    assert sum(p.numel() for p in own.values()) == sum(int(np.prod(shape)) for shape in shapes.values())


def test_checkpointing_changes_no_gradient(golden: Golden) -> None:
    options = generator_options(golden.json["variants"]["base"]["config"])
    gradients = []
    for checkpointing in (False, True):
        generator = ImageGenerator(**options | {"checkpointing": checkpointing})
        load_generator_weights(generator, golden.under("base/params/"))
        generator(**golden.inputs("base/a", generator)).square().sum().backward()
        gradients.append([parameter.grad for parameter in generator.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def tiny(**changes: Any) -> ImageGenerator:
    options: dict[str, Any] = {"classes": 3, "image_size": 4, "in_channels": 1, "out_channels": 2, "patch": 2, "width": 16}
    return ImageGenerator(**options | {"depth": 1, "heads": 2, "cond_dim": 8, "styles": 4, "style_tokens": 3} | changes)


def test_rows_do_not_see_each_other_and_channels_may_differ() -> None:
    torch.manual_seed(0)
    generator = tiny(precision="float32")
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = {"noise": torch.randn(5, 1, 4, 4), "labels": torch.arange(5) % 3, "cfg_scale": torch.linspace(1, 3, 5)}
    inputs["style"] = generator.draw_style(5, torch.Generator().manual_seed(0))
    whole = generator(**inputs)
    alone = torch.cat([generator(**{key: value[i : i + 1] for key, value in inputs.items()}) for i in range(5)])
    assert whole.shape == (5, 2, 4, 4)
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    others = {"labels": (inputs["labels"] + 1) % 3, "cfg_scale": inputs["cfg_scale"] + 1, "style": (inputs["style"] + 1) % 4}
    for name, other in others.items():  # the scale is heard 50 times more softly than class and style
        assert (generator(**inputs | {name: other}) - whole).abs().max() > (1e-4 if name == "cfg_scale" else 1e-2), name


def test_the_noise_enters_by_its_scale_and_styles_suffice() -> None:
    inputs: dict[str, Any] = {"noise": torch.randn(5, 1, 4, 4), "labels": torch.arange(5) % 3, "cfg_scale": torch.ones(5)}
    inputs["style"] = torch.arange(15).view(5, 3) % 4
    drawn = []
    for scale in (1.0, 0.5, 0.0):
        torch.manual_seed(0)
        generator = tiny(precision="float32", noise_scale=scale)
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        drawn.append(generator(**inputs | {"noise": inputs["noise"] / scale if scale else inputs["noise"]}))
        still = torch.equal(generator(**inputs | {"noise": torch.zeros(5, 1, 4, 4)}), drawn[-1])
        assert still == (scale == 0)
    torch.testing.assert_close(drawn[0], drawn[1])
    assert drawn[2].std(dim=0).min() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_scale": -1.0}, "at least 0"),
        ({"noise_scale": math.nan}, "got nan"),
        ({"noise_scale": 0.0, "styles": 0}, "no styles"),
        ({"patch": 3}, "no multiple of 3"),
        ({"heads": 3}, "width 16 for 3 heads"),
        ({"precision": "half"}, "release_half"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_wrong_inputs_and_weights_are_named() -> None:
    generator = tiny(precision="float32")
    labels, scale = torch.zeros(1).long(), torch.ones(1)
    with pytest.raises(ValueError, match=r"\(b, 1, 4, 4\)"):
        generator(torch.zeros(1, 1, 5, 4), labels=labels, cfg_scale=scale, style=torch.zeros(1, 3).long())
    released = dict(released_weights(generator, dict(generator.named_parameters())))
    with pytest.raises(CheckpointError, match="pos_embed"):
        load_generator_weights(generator, {key: value for key, value in released.items() if "pos_embed" not in key})
    with pytest.raises(CheckpointError, match="does not fit positions"):
        load_generator_weights(generator, released | {"LightningDiT_0/pos_embed": np.zeros((1, 3, 16))})
    with pytest.raises(CheckpointError, match="unknown fields"):
        generator_options({"surprise": 1})
    with pytest.raises(CheckpointError, match="lacks the fields"):
        generator_options({"num_classes": 3})
