"""How the released generators name their weights, and where each of them goes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.types import CheckpointError

# Our keyword argument of ImageGenerator for each field of a released configuration.
GENERATOR_FIELDS = {
    "num_classes": "classes",
    "input_size": "image_size",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "patch_size": "patch",
    "hidden_size": "width",
    "depth": "depth",
    "num_heads": "heads",
    "cond_dim": "cond_dim",
    "mlp_ratio": "mlp_ratio",
    "n_cls_tokens": "registers",
    "noise_classes": "styles",
    "noise_coords": "style_tokens",
    "use_qknorm": "qk_norm",
    "use_swiglu": "gated",
    "use_rope": "rotary",
    "use_rmsnorm": "rms",
    "use_remat": "checkpointing",
}
PRECISION_FIELDS = ("use_bf16", "attn_fp32")


def generator_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ImageGenerator for the `model_config` of a released generator.

    Raises:
        CheckpointError: a field that is unknown, or one that the generator cannot be built without.
    """
    if unknown := sorted(set(fields) - set(GENERATOR_FIELDS) - set(PRECISION_FIELDS)):
        raise CheckpointError(f"The released configuration has unknown fields {unknown}.")
    if missing := sorted(set(GENERATOR_FIELDS) - {"use_remat"} - set(fields)):
        raise CheckpointError(f"The released configuration lacks the fields {missing}.")
    half = bool(fields.get("use_bf16", False))
    precision = ("release" if fields.get("attn_fp32", True) else "release_half") if half else "float32"
    return {GENERATOR_FIELDS[name]: fields[name] for name in GENERATOR_FIELDS if name in fields} | {"precision": precision}


def generator_names(generator: ImageGenerator) -> dict[str, str]:
    """Our name of each released parameter, in the layout of the release; a slash and number selects a style table."""
    names = {
        "Embed_0/embedding": "conditioning.label",
        "RMSNorm_0/weight": "conditioning.guidance_norm.weight",
        "LightningDiT_0/pos_embed": "positions",
    }
    names |= {f"noise_embeds_{m}/embedding": f"conditioning.style/{m}" for m in range(generator.style_tokens)}
    names |= dense("TimestepEmbedder_0/TorchLinear_0", "conditioning.guidance.0")
    names |= dense("TimestepEmbedder_0/TorchLinear_1", "conditioning.guidance.2")
    names |= dense("LightningDiT_0/TorchLinear_0", "embed")
    if generator.registers:
        names |= dense("LightningDiT_0/TorchLinear_1", "register_embed") | {"LightningDiT_0/cls_embed": "register_table"}
    recipe = generator.recipe
    for i in range(recipe["depth"]):
        theirs, ours = f"LightningDiT_0/blocks_{i}", f"transformer.blocks.{i}"
        names |= dense(f"{theirs}/TorchLinear_0", f"{ours}.modulation.linear")
        names |= dense(f"{theirs}/Attention_0/TorchLinear_0", f"{ours}.attention.qkv")
        names |= dense(f"{theirs}/Attention_0/TorchLinear_1", f"{ours}.attention.out")
        net, layers = ("SwiGLUFFN_0", ("gate", "up", "down")) if recipe["gated"] else ("StandardMLP_0", ("inner", "outer"))
        for j, layer in enumerate(layers):
            names |= dense(f"{theirs}/{net}/TorchLinear_{j}", f"{ours}.feed_forward.{layer}")
        if recipe["rms"]:
            names |= {f"{theirs}/RMSNorm_{j}/weight": f"{ours}.norm{j + 1}.weight" for j in (0, 1)}
        if recipe["qk_norm"]:
            parts = {"weight": "weight"} if recipe["rms"] else {"scale": "weight", "bias": "bias"}
            for which in ("q_norm", "k_norm"):
                names |= {f"{theirs}/Attention_0/{which}/{a}": f"{ours}.attention.{which}.{b}" for a, b in parts.items()}
    names |= dense("LightningDiT_0/FinalLayer_0/TorchLinear_0", "modulation.linear")
    names |= dense("LightningDiT_0/FinalLayer_0/TorchLinear_1", "output")
    if recipe["rms"]:
        names["LightningDiT_0/FinalLayer_0/RMSNorm_0/weight"] = "norm.weight"
    return names


def dense(theirs: str, ours: str) -> dict[str, str]:
    """The two parameters of a linear layer."""
    return {f"{theirs}/Dense_0/kernel": f"{ours}.weight", f"{theirs}/Dense_0/bias": f"{ours}.bias"}


def load_generator_weights(generator: ImageGenerator, released: Mapping[str, np.ndarray]) -> None:
    """Copy released parameters, by their names, into `generator`.

    Raises:
        CheckpointError: a parameter that is missing, unknown or of another shape.
    """
    names = generator_names(generator)
    if set(released) != set(names):
        missing, unknown = sorted(set(names) - set(released)), sorted(set(released) - set(names))
        raise CheckpointError(f"The released weights do not fit the configuration; missing: {missing}, unknown: {unknown}.")
    own = dict(generator.named_parameters())
    for theirs, values in released.items():
        name, _, table = names[theirs].partition("/")
        target = own[name].data[int(table)] if table else own[name].data
        source = torch.from_numpy(np.array(values, np.float32))
        source = source.T if theirs.endswith("/kernel") else source
        if source.shape != target.shape:
            raise CheckpointError(f"The released weight '{theirs}' has shape {values.shape}, which does not fit {name}.")
        target.copy_(source)


def released_weights(generator: ImageGenerator, values: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays in the layout of the release for `values` by our parameter names, such as weights or gradients."""
    for theirs, ours in generator_names(generator).items():
        name, _, table = ours.partition("/")
        array = values[name].detach().float().cpu().numpy()
        array = array[int(table)] if table else array
        yield theirs, array.T if theirs.endswith("/kernel") else array
