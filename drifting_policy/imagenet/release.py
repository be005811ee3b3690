"""How the released generators and encoders name their weights, and where each of them goes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drifting_policy.imagenet.autoencoder import MaskedAutoencoder
from drifting_policy.imagenet.encoder import ImageEncoder
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

# Our keyword argument of ImageEncoder for each field of a released configuration, and those of its auto-encoder.
ENCODER_FIELDS = {"in_channels": "in_channels", "base_channels": "width", "layers": "layers", "input_patch_size": "fold"}
AUTOENCODER_FIELDS = {"num_classes": "classes", "patch_size": "mask_cell"}
AUTOENCODER_DEFAULTS = {"num_classes": 1000, "dropout_prob": 0.0, "use_bf16": False}

# Where the axes of a kernel stand in the release: inputs before outputs, and height and width before both.
KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
RELEASED_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}


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
    copy_weights(generator, released, names=generator_names(generator))


def encoder_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ImageEncoder for the `model_config` of a released masked auto-encoder.

    Raises:
        CheckpointError: a field that is unknown, one that is missing, or dropout, which no release has.
    """
    if unknown := sorted(set(fields) - set(ENCODER_FIELDS) - set(AUTOENCODER_FIELDS) - set(AUTOENCODER_DEFAULTS)):
        raise CheckpointError(f"The released configuration has unknown fields {unknown}.")
    if missing := sorted({*ENCODER_FIELDS, *AUTOENCODER_FIELDS} - set(AUTOENCODER_DEFAULTS) - set(fields)):
        raise CheckpointError(f"The released configuration lacks the fields {missing}.")
    known = AUTOENCODER_DEFAULTS | dict(fields)
    if known["dropout_prob"]:
        raise CheckpointError(f"The released configuration asks for dropout_prob {known['dropout_prob']}; only 0 is known.")
    precision = "bfloat16" if known["use_bf16"] else "float32"
    return {ours: known[theirs] for theirs, ours in ENCODER_FIELDS.items()} | {"precision": precision}


def autoencoder_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of MaskedAutoencoder for the `model_config` of a released one; there are 1000 classes unless it says.

    Raises:
        CheckpointError: as `encoder_options`.
    """
    options, known = encoder_options(fields), AUTOENCODER_DEFAULTS | dict(fields)
    return {ours: known[theirs] for theirs, ours in AUTOENCODER_FIELDS.items()} | options


def encoder_names(model: MaskedAutoencoder | ImageEncoder) -> dict[str, str]:
    """Our name of each released parameter of an auto-encoder, or of an encoder alone, in the layout of the release."""
    encoder, prefix = (model.encoder, "encoder.") if isinstance(model, MaskedAutoencoder) else (model, "")
    names = normed_conv("encoder", f"{prefix}stem", conv="conv1", norm="gn1")
    for s, count in enumerate(encoder.recipe["layers"]):
        for b in range(count):
            theirs, ours = f"encoder/stages_{s}/layers_{b}", f"{prefix}stages.{s}.{b}"
            names |= normed_conv(theirs, f"{ours}.first", conv="conv1", norm="gn1")
            names |= normed_conv(theirs, f"{ours}.second", conv="conv2", norm="gn2")
            if s and not b:
                names |= normed_conv(theirs, f"{ours}.shortcut", conv="proj_conv", norm="proj_gn")
        names |= channel_norm(f"encoder/layer{s + 1}_norm", f"{prefix}norms.{s}")
    if isinstance(model, ImageEncoder):
        return names
    names |= normed_conv("decoder/bridge", "decoder.bridge")
    for i, step in enumerate(("up43", "up32", "up21", "up10")):
        names |= channel_norm(f"decoder/{step}/concat_norm_fn", f"decoder.steps.{i}.norm")
        names |= normed_conv(f"decoder/{step}/proj", f"decoder.steps.{i}.project")
        names |= normed_conv(f"decoder/{step}/refine", f"decoder.steps.{i}.refine")
    names |= {f"decoder/head/{a}": f"decoder.output.{b}" for a, b in (("kernel", "weight"), ("bias", "bias"))}
    return names | {f"fc/{a}": f"classifier.{b}" for a, b in (("kernel", "weight"), ("bias", "bias"))}


def normed_conv(theirs: str, ours: str, *, conv: str = "conv", norm: str = "gn") -> dict[str, str]:
    """The three parameters of a convolution and its norm."""
    return {f"{theirs}/{conv}/kernel": f"{ours}.conv.weight"} | channel_norm(f"{theirs}/{norm}", f"{ours}.norm")


def channel_norm(theirs: str, ours: str) -> dict[str, str]:
    """The two parameters of a group norm."""
    return {f"{theirs}/scale": f"{ours}.weight", f"{theirs}/bias": f"{ours}.bias"}


def load_encoder_weights(model: MaskedAutoencoder | ImageEncoder, released: Mapping[str, np.ndarray]) -> None:
    """Copy released parameters, by their names, into `model`; an encoder alone needs neither decoder nor classifier.

    Raises:
        CheckpointError: a parameter that is missing, unknown or of another shape.
    """
    ignored = ("decoder/", "fc/") if isinstance(model, ImageEncoder) else ()
    copy_weights(model, released, names=encoder_names(model), ignored=ignored)


def copy_weights(
    module: nn.Module, released: Mapping[str, np.ndarray], *, names: Mapping[str, str], ignored: tuple[str, ...] = ()
) -> None:
    """Copy released parameters into those of `module` that `names` tells, one after another in the order of `released`.

    Raises:
        CheckpointError: a parameter that is missing, of another shape, or unknown and not named like one of `ignored`.
    """
    used = [theirs for theirs in released if not theirs.startswith(ignored)]
    if set(used) != set(names):
        missing, unknown = sorted(set(names) - set(used)), sorted(set(used) - set(names))
        raise CheckpointError(f"The released weights do not fit the configuration; missing: {missing}, unknown: {unknown}.")
    own = dict(module.named_parameters())
    for theirs in used:
        name, _, table = names[theirs].partition("/")
        target, values = own[name].data[int(table)] if table else own[name].data, released[theirs]
        source = torch.from_numpy(np.array(values, np.float32))
        if theirs.endswith("/kernel") and source.ndim in KERNEL_AXES:
            source = source.permute(KERNEL_AXES[source.ndim])
        if source.shape != target.shape:
            raise CheckpointError(f"The released weight '{theirs}' has shape {values.shape}, which does not fit {name}.")
        target.copy_(source)


def released_weights(
    module: ImageGenerator | MaskedAutoencoder | ImageEncoder, values: Mapping[str, Tensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays in the layout of the release for `values` by our parameter names, such as weights or gradients."""
    names = generator_names(module) if isinstance(module, ImageGenerator) else encoder_names(module)
    for theirs, ours in names.items():
        name, _, table = ours.partition("/")
        array = values[name].detach().float().cpu().numpy()
        array = array[int(table)] if table else array
        yield theirs, array.transpose(RELEASED_AXES[array.ndim]) if theirs.endswith("/kernel") else array
